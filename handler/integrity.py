"""Whether an archive is what its builder wrote: digests of all its files, and a signature where one is asked for.

``archive.json`` holds the SHA-256 of every other file (``files``) and one of its own text (``digest``). They find
damage and mix-ups. Whoever changes an archive on purpose can write new ones: against that stands a signature of
``archive.json`` (Ed25519, RFC 8032), made by ``builder sign`` and asked for by the environment variable
``EFFT_PUBLIC_KEY``, never by anything that an archive says itself. docs/security.md says what each check is good for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from handler.archive import ArchiveError, ArchiveFacts

logger = logging.getLogger(__name__)

FACTS = "archive.json"
SIGNATURE = "archive.sig.json"
PUBLIC_KEY = "EFFT_PUBLIC_KEY"
"""Environment variable: a PEM file of one or several Ed25519 public keys, one of which must have signed an archive."""
SIGNED_PREFIX = b"efft archive 1\n"
"""Goes before archive.json's bytes, so that no signature made for something else fits."""
_UNCHECKED = (FACTS, SIGNATURE)
_LEFT_BY_WORKERS = re.compile(r"(^|/)__pycache__/|^core(\.\d+)?$")
"""Bytecode, and core dumps: a worker's working folder is its archive's."""
_UNSIGNABLE = "the archive carries no digests (it was built by 0.1.0), so that no signature covers it; build it again"
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")


def check(folder: Path, facts: ArchiveFacts, key_file: Path | None = None) -> None:
    """Check an extracted archive before anything of it is used.

    ``key_file``: the public keys one of which must have signed it; None: those of ``EFFT_PUBLIC_KEY``, if set.
    Raises ArchiveError with the name of the first file that differs, is missing or does not belong to it, and where
    a signature is asked for and is missing or wrong. An archive of 0.1.0 has no digests: that is logged.
    """
    content = _read(folder, FACTS)
    if key_file is None and (given := os.environ.get(PUBLIC_KEY)):
        key_file = Path(given)
    if key_file is not None:
        signature = folder / SIGNATURE
        check_signature(content, signature.read_bytes() if signature.is_file() else None, key_file)
        if not has_digests(facts):
            raise ArchiveError(_UNSIGNABLE)
    if not has_digests(facts):
        # A stage that is still to be proved has no manifest, and no digests yet.
        if (folder / "MAR-INF").is_dir():
            logger.warning("%s carries no digests (it was built by 0.1.0); its files are not checked", facts.name)
        return
    check_own_digest(content, facts.digest)
    found = {name for name in _names(folder) if not _LEFT_BY_WORKERS.search(name)}
    compare(facts.files, found, {name: sha256(folder / name) for name in facts.files if name in found})


def check_packed(path: Path, key_file: Path | None = None) -> ArchiveFacts:
    """Check a ``.mar`` from outside, none of its code being run; returns what its archive.json says.

    ``key_file``: the public keys one of which must have signed it. Raises ArchiveError as ``check`` does, and where
    the zip could be read in two ways.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            names = packed.namelist()
            if FACTS not in names:
                raise ArchiveError(f"{FACTS} is missing from {path.name}; is it an archive of this builder?")
            content = packed.read(FACTS)
            facts = ArchiveFacts.parse(content)
            if key_file is not None:
                check_signature(content, packed.read(SIGNATURE) if SIGNATURE in names else None, key_file)
                if not has_digests(facts):
                    raise ArchiveError(_UNSIGNABLE)
            if has_digests(facts):
                _check_layout(packed, path)
                check_own_digest(content, facts.digest)
                present = [name for name in facts.files if name in names]
                compare(facts.files, names, {name: _entry_sha256(packed, name) for name in present})
            return facts
    except (OSError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{path.name} cannot be read ({error})") from error


def has_digests(facts: ArchiveFacts) -> bool:
    """Whether the archive is of a builder that writes digests: either trace of them counts, so that no change of one
    byte makes an archive look older than it is."""
    return bool(facts.files or facts.digest)


def check_own_digest(content: bytes, digest: str) -> None:
    """Raises ArchiveError where archive.json's text is not the one its digest was made of."""
    if ArchiveFacts.digest_of(content) != digest:
        raise ArchiveError(_differs(FACTS))


def compare(expected: Mapping[str, str], found: Iterable[str], digests: Mapping[str, str]) -> None:
    """Raises ArchiveError naming the first file that is missing, differs or is one too many.

    ``expected`` and ``digests``: SHA-256 by name; ``found``: the names that are there.
    """
    found = set(found) - set(_UNCHECKED)
    if missing := sorted(set(expected) - found):
        raise ArchiveError(f"{missing[0]} is missing from the archive; build it again")
    if differing := sorted(name for name in expected if digests[name] != expected[name]):
        raise ArchiveError(_differs(differing[0]))
    if extra := sorted(found - set(expected)):
        raise ArchiveError(f"{extra[0]} does not belong to the archive; remove it, or build the archive again")


def check_signature(content: bytes, signature: bytes | None, key_file: Path) -> str:
    """The first 16 digits of the key that has signed archive.json's bytes ``content``, one of ``key_file``'s.

    Raises ArchiveError where there is no signature, it is no signature of these bytes, or another key's.
    """
    keys = public_keys(key_file)
    if signature is None:
        raise ArchiveError(f"the archive is not signed, and {PUBLIC_KEY} asks for it; sign it (builder sign)")
    try:
        facts = json.loads(signature)
        key, signed = str(facts["public_key"]), bytes.fromhex(facts["signature"])
        known = signature == signature_text(key, signed) and facts["algorithm"] == "ed25519"
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ArchiveError(_differs(SIGNATURE))
    if key not in keys:
        raise ArchiveError(f"{SIGNATURE}: the archive is signed by key {key[:16]}, which is none of {key_file.name}'s")
    from cryptography.exceptions import InvalidSignature

    try:
        keys[key].verify(signed, SIGNED_PREFIX + content)
    except InvalidSignature as error:
        raise ArchiveError(f"{FACTS} is not the file that was signed ({SIGNATURE}); sign the archive again") from error
    return key[:16]


def signature_text(key: str, signature: bytes) -> bytes:
    """The content of archive.sig.json. ``key``: the raw public key in hexadecimal digits."""
    facts = {"algorithm": "ed25519", "public_key": key, "signature": signature.hex()}
    return (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()


def public_keys(path: Path) -> dict[str, Any]:
    """Ed25519 keys of a PEM file by their raw bytes' hexadecimal digits; several may follow each other.

    Raises ArchiveError where the file cannot be read or holds none.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise ArchiveError("a signature is asked for; install cryptography to check it") from error
    end = b"-----END PUBLIC KEY-----\n"
    try:
        text = path.read_bytes().replace(b"\r\n", b"\n").rstrip() + b"\n"
        blocks = [block + end for block in text.split(end) if block.strip()]
        keys = [serialization.load_pem_public_key(block) for block in blocks]
    except OSError as error:
        raise ArchiveError(f"the public key {path} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise ArchiveError(f"{path} is not a PEM file of public keys; builder keygen makes one") from error
    if not keys or not all(isinstance(key, Ed25519PublicKey) for key in keys):
        raise ArchiveError(f"{path} holds no Ed25519 public key; builder keygen makes one")
    return {key.public_bytes_raw().hex(): key for key in keys}  # type: ignore[union-attr]


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stream_sha256(stream: IO[bytes]) -> str:
    """Of what is left of a stream, in hexadecimal digits."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _entry_sha256(packed: zipfile.ZipFile, name: str) -> str:
    try:
        with packed.open(name) as stream:
            return stream_sha256(stream)
    except zipfile.BadZipFile as error:  # the zip's own checksum
        raise ArchiveError(_differs(name)) from error


def _differs(name: str) -> str:
    return f"{name} is not the file the archive was built with; build it again"


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ArchiveError(f"{name} is missing from the archive; build it again") from error


def _names(folder: Path) -> list[str]:
    return [(Path(root) / file).relative_to(folder).as_posix() for root, _, files in os.walk(folder) for file in files]


def _check_layout(packed: zipfile.ZipFile, path: Path) -> None:
    """Raises ArchiveError where readers of the zip could disagree on what it holds.

    This module reads the table at a zip's end; TorchServe (Java's ZipInputStream) reads the entries from the
    beginning on. They see the same only where the entries stand one behind the other, just as the table has them.
    """
    position = 0
    seen: set[str] = set()
    with path.open("rb") as stream:
        for entry in sorted(packed.infolist(), key=lambda entry: entry.header_offset):
            name = entry.filename
            strange = name in seen or name.startswith("/") or "\\" in name or ".." in name.split("/")
            end = _local_end(stream, position, entry) if entry.header_offset == position else None
            if strange or end is None:
                raise ArchiveError(f"{name}: this entry of {path.name} is not as the builder writes it; build it again")
            seen.add(name)
            position = end
    if position != packed.start_dir:
        raise ArchiveError(f"{path.name} holds something between its files and its table; build it again")


def _local_end(stream: IO[bytes], position: int, entry: zipfile.ZipInfo) -> int | None:
    """Where an entry ends, None where its own header and the table's do not agree (APPNOTE.TXT, 4.3.7)."""
    stream.seek(position)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        return None
    magic, _, flags, method, _, _, crc, packed_size, size, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name, extra = stream.read(name_length), stream.read(extra_length)
    if packed_size == size == 0xFFFFFFFF and extra[:4] == b"\x01\x00\x10\x00":  # zip64
        size, packed_size = struct.unpack_from("<QQ", extra, 4)
    described = (magic, method, crc, packed_size, size, name.decode("utf-8", "replace"))
    if flags & 0x08 or described != (b"PK\3\4", 0, entry.CRC, entry.file_size, entry.file_size, entry.filename):
        return None
    return position + _LOCAL_HEADER.size + name_length + extra_length + size
