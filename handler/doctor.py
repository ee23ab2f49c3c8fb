"""``python -m handler.doctor NAME.mar``: what a worker checks at its start, and one prediction, without a server.

First the archive's files and, with ``--public-key`` (or ``EFFT_PUBLIC_KEY``), its signature are checked from outside;
then the handler that the archive itself carries, which is what a worker runs, is asked in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TextIO

from handler import integrity
from handler.archive import ArchiveError, ArchiveFacts
from handler.faults import guarded

_INSIDE = """
import sys
from pathlib import Path
folder, gpu = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(folder))
from handler.archive import ArchiveError
from handler.config import ConfigError
from handler.doctor import examine
try:
    examine(folder, int(gpu) if gpu else None, sys.stdout)
except (ArchiveError, ConfigError) as error:
    print(f"not servable: {error}")
    sys.exit(1)
"""
"""Runs in the fresh process. Archives of every version have these three modules and ``examine``."""


def main(arguments: list[str] | None = None, out: TextIO = sys.stdout, prog: str = "python -m handler.doctor") -> int:
    """Check an archive (or a folder with an extracted one); exit status 0 where it can be served."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--gpu", type=int, help="the GPU's index (default: the CPU)")
    parser.add_argument("--public-key", type=Path, metavar="FILE", help="refuse what no key of this PEM has signed")
    options = parser.parse_args(arguments)
    return guarded("doctor", lambda: _main(options, out))


def _main(options: argparse.Namespace, out: TextIO) -> int:
    given = os.environ.get(integrity.PUBLIC_KEY)
    key_file = options.public_key or (Path(given) if given else None)
    try:
        check_torch_is_safe()
        with tempfile.TemporaryDirectory() as temporary:
            out.write(f"files     {check_files(options.archive, key_file)}\n")
            folder = extracted(options.archive, Path(temporary) / "archive")
            return ask_its_own_handler(folder, Path(temporary), options.gpu, key_file, out)
    except ArchiveError as error:
        out.write(f"not servable: {error}\n")
        return 1


def check_torch_is_safe() -> None:
    """Raises ArchiveError where the installed torch is older than any archive may be loaded with."""
    from handler.runtime import SAFE_TORCH, check_torch

    check_torch(SAFE_TORCH)


def check_files(archive: Path, key_file: Path | None) -> str:
    """Check digests and signature with this module's code, not the archive's; what was found. Raises ArchiveError."""
    if archive.is_dir():
        facts = ArchiveFacts.load(archive / integrity.FACTS)
        integrity.check(archive, facts, key_file)
    else:
        facts = integrity.check_packed(archive, key_file)
    if not integrity.has_digests(facts):
        return "not checked: the archive carries no digests (it was built by 0.1.0)"
    signed = f", signed by a key of {key_file.name}" if key_file else ""
    return f"{len(facts.files) + 1} as built{signed}"


def extracted(archive: Path, folder: Path) -> Path:
    """The archive's files in ``folder``, or the archive itself where it is a folder. Raises ArchiveError."""
    if archive.is_dir():
        return archive.resolve()
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{archive.name} cannot be read ({error})") from error
    return folder


def ask_its_own_handler(folder: Path, scratch: Path, gpu: int | None, key_file: Path | None, out: TextIO) -> int:
    """Run ``examine`` of the archive's handler in a fresh process; its exit status. Raises ArchiveError where it fails
    in another way than by refusing the archive.

    ``scratch``: an empty working folder, and where the process looks for bytecode: none that lies beside the
    archive's sources, which may be another version's, is used.
    """
    if not (folder / "handler" / "doctor.py").is_file():
        raise ArchiveError("handler/doctor.py is missing from the archive; build it again")
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}
    environment.pop("PYTHONPATH", None)  # the checkout must not lend what the archive lacks
    if key_file is not None:
        environment[integrity.PUBLIC_KEY] = str(key_file.resolve())
    command = [sys.executable, "-c", _INSIDE, str(folder), "" if gpu is None else str(gpu)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch, env=environment)
    out.write(result.stdout)
    if result.returncode < 0:
        raise ArchiveError(f"the archive's handler was ended by signal {-result.returncode}")
    if result.returncode and "not servable" not in result.stdout:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ArchiveError(f"the archive's handler failed ({last}); build it again")
    return result.returncode


def examine(folder: Path, gpu: int | None, out: TextIO) -> None:
    """Load, warm up and ask one question, with a line for each thing found. Raises ArchiveError or ConfigError."""
    import torch

    from handler.predictor import Predictor
    from handler.threads import read_server_settings

    predictor = Predictor.load(folder, gpu, read_server_settings(folder))
    facts = predictor.facts
    out.write(f"archive   {facts.name}: {facts.task}, {facts.family}, {facts.encoder} encoder, {facts.data_type}\n")
    out.write(f"torch     {torch.__version__} (built with {facts.torch.built}, oldest {facts.torch.oldest})\n")
    for name, library in sorted(facts.libraries.items()):
        out.write(f"library   {name}: {', '.join(library.targets) or library.device}\n")
    out.write(f"device    {predictor.model.device}\n")
    out.write(f"threads   {predictor.placement}\n")
    health = predictor.canary.check()
    if not health["healthy"]:
        raise ArchiveError(f"a known request failed: {health['reason']}")
    out.write(f"canary    answered in {health['milliseconds']:.1f} ms\n")
    answer = predictor(predictor.canary.request)
    out.write(f"request   {json.dumps(predictor.canary.request, ensure_ascii=False)}\n")
    out.write(f"answer    {json.dumps(answer, ensure_ascii=False)[:400]}\n")
    out.write("servable\n")


if __name__ == "__main__":
    sys.exit(main())
