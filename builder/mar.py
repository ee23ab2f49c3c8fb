"""The ``.mar`` itself: a stage packed by torch-model-archiver, and changes to files of a packed archive.

The same input gives the same bytes: entries are sorted and carry no dates. An archive is renamed into place, so that it
is the old one or the new one, whatever happens.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from builder.errors import BuildError
from builder.staging import settle, staging
from handler.archive import ArchiveFacts
from handler.integrity import FACTS, SIGNATURE, check_own_digest, has_digests, stream_sha256

_DATE = (1980, 1, 1, 0, 0, 0)
_MANIFEST = "MAR-INF/MANIFEST.json"


def pack(stage: Path, facts: ArchiveFacts, output: Path) -> Path:
    """Pack the files of ``stage`` into ``output``, with digests of all of them in archive.json; the archive's path.

    Works in the folder that holds ``stage``. Raises BuildError where the archiver fails.
    """
    folder = stage.parent
    raw = _archived(stage, facts.name, folder)
    with zipfile.ZipFile(raw) as packed:
        files = {name: _digest(packed, name) for name in packed.namelist() if name != FACTS}
    sealed = facts.model_copy(update={"files": files})
    unfinished = folder / f"{facts.name}.reproducible"
    rewrite(raw, unfinished, {FACTS: sealed.content()})
    return settle(unfinished, output / f"{facts.name}.mar")


def replace_files(archive: Path, contents: Mapping[str, bytes], facts: ArchiveFacts | None = None) -> bool:
    """Give an archive new contents of files, and their digests where it has digests.

    ``facts``: what archive.json is to say otherwise, where that is something new. Returns whether the archive was
    signed: its signature, which no longer fits, is left out. Raises ArchiveError where archive.json is damaged.
    """
    with zipfile.ZipFile(archive) as packed:
        signed = SIGNATURE in packed.namelist()
        content = packed.read(FACTS)
    facts = facts or ArchiveFacts.parse(content)
    if has_digests(facts):
        check_own_digest(content, facts.digest)  # a new digest must not hide that the old one did not fit
        files = {**facts.files, **{name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}}
        facts = facts.model_copy(update={"files": files})
    _replace(archive, {**contents, FACTS: facts.content(), SIGNATURE: None})
    return signed


def add_signature(archive: Path, signature: bytes) -> None:
    """Put a signature into an archive, in the place of one that it has."""
    _replace(archive, {SIGNATURE: signature})


def rewrite(source: Path, target: Path, contents: Mapping[str, bytes | None] | None = None) -> None:
    """Copy a zip with sorted entries and neither dates nor modes of the building machine.

    ``contents`` replace those of the entries they name, or come in addition; None leaves an entry out. Entries stay
    uncompressed: weights do not compress, and a worker starts sooner.
    """
    contents = contents or {}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        names = {*old.namelist(), *contents} - {name for name, content in contents.items() if content is None}
        for name in sorted(names):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            content = contents.get(name)
            if content is None and name == _MANIFEST:
                content = _dateless(old.read(name))
            if content is not None:
                new.writestr(entry, content)
                continue
            entry.file_size = old.getinfo(name).file_size
            with old.open(name) as reader, new.open(entry, "w") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)


def _replace(archive: Path, contents: Mapping[str, bytes | None]) -> None:
    with staging(archive.parent, archive.stem) as temporary:
        target = temporary / archive.name
        rewrite(archive, target, contents)
        shutil.copymode(archive, target)
        settle(target, archive)


def _digest(packed: zipfile.ZipFile, name: str) -> str:
    if name == _MANIFEST:
        return hashlib.sha256(_dateless(packed.read(name))).hexdigest()
    with packed.open(name) as stream:
        return stream_sha256(stream)


def _dateless(manifest: bytes) -> bytes:
    facts = {**json.loads(manifest), "createdOn": "01/01/1980 00:00:00"}
    return json.dumps(facts, indent=2, sort_keys=True).encode()


def _archived(stage: Path, name: str, folder: Path) -> Path:
    service, settings = stage / "service.py", stage / "model-config.yaml"
    service, settings = service.rename(folder / service.name), settings.rename(folder / settings.name)
    command = [
        sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name, "--version", "1.0",
        "--handler", str(service), "--config-file", str(settings), "--extra-files", str(stage),
        "--export-path", str(folder), "--archive-format", "zip-store",
    ]  # fmt: skip
    # The archiver stages under the temporary folder's NAME; its own folder keeps parallel builds apart.
    scratch = folder / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    raw = folder / f"{name}.mar"
    if result.returncode or not raw.exists():
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"torch-model-archiver failed: {last}")
    return raw
