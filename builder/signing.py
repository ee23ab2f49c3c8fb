"""``python -m builder keygen``, ``sign`` and ``verify``: whose archive it is (Ed25519, RFC 8032, by ``cryptography``).

Signed is ``archive.json``, which holds the SHA-256 of every other file. Keys are PEM files, as ``openssl genpkey
-algorithm ed25519`` makes them too.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

from builder.errors import BuildError
from builder.mar import add_signature
from handler.archive import ArchiveError
from handler.integrity import FACTS, SIGNED_PREFIX, check_packed, has_digests, signature_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommands."""
    making = commands.add_parser("keygen", help="make a pair of keys, KEY (secret) and KEY.pub")
    making.add_argument("key", type=Path, metavar="KEY", help="the secret key's file, a PEM; must not exist")
    making.set_defaults(run=_keygen)

    signing = commands.add_parser("sign", help="sign archives, in place, so that servers can tell whose they are")
    signing.add_argument("archives", nargs="+", type=Path, metavar="NAME.mar")
    signing.add_argument("--key", type=Path, required=True, help="the secret key's file, a PEM")
    signing.set_defaults(run=_sign)

    verifying = commands.add_parser("verify", help="check every file of archives, and whose they are, running nothing")
    verifying.add_argument("archives", nargs="+", type=Path, metavar="NAME.mar")
    verifying.add_argument("--public-key", type=Path, metavar="FILE", help="a PEM of the keys that may have signed")
    verifying.set_defaults(run=_verify)


def keygen(secret: Path) -> Path:
    """Write a new secret key into ``secret`` (readable by its owner only); the path of the public key beside it.

    Raises BuildError where one of the files exists or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    target = secret.with_name(f"{secret.name}.pub")
    if target.exists():
        raise BuildError(f"{target} exists; a key is never overwritten")
    for path, content, mode in ((secret, private, 0o600), (target, public, 0o644)):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise BuildError(f"{path} exists; a key is never overwritten") from error
        except OSError as error:
            raise BuildError(f"{path} cannot be written ({error.strerror})") from error
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
    return target


def sign(archive: Path, secret: Path) -> str:
    """Sign an archive whose files are all as built; the first 16 digits of the key it is signed by.

    Raises ArchiveError where a file differs, BuildError where the archive has no digests or the key is none.
    """
    key = _secret_key(secret)
    if not has_digests(check_packed(archive)):
        raise BuildError(f"{archive.name} carries no digests to sign (it was built by 0.1.0); build it again")
    with ZipFile(archive) as packed:
        content = packed.read(FACTS)
    public = key.public_key().public_bytes_raw().hex()
    add_signature(archive, signature_text(public, key.sign(SIGNED_PREFIX + content)))
    return public[:16]


def _secret_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise BuildError(f"the key {path} cannot be read ({error.strerror})") from error
    except TypeError as error:
        raise BuildError(f"{path} is encrypted; decrypt it first (openssl pkey)") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BuildError(f"{path} is not a PEM file of a secret key; builder keygen makes one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BuildError(f"{path} is no Ed25519 key; builder keygen makes one")
    return key


def _keygen(options: argparse.Namespace) -> None:
    public = keygen(options.key)
    print(f"{options.key} signs and stays secret; {public} goes to the servers")


def _sign(options: argparse.Namespace) -> None:
    for archive in options.archives:
        print(f"{archive}: signed by key {sign(archive, options.key)}")


def _verify(options: argparse.Namespace) -> None:
    bad = 0
    for archive in options.archives:
        try:
            facts = check_packed(archive, options.public_key)
        except ArchiveError as error:
            bad += 1
            print(f"{archive}: REFUSED: {error}")
            continue
        files = f"{len(facts.files) + 1} files as built" if has_digests(facts) else "no digests (built by 0.1.0)"
        print(f"{archive}: {files}" + (", signed by a key of " + options.public_key.name if options.public_key else ""))
    if bad:
        raise BuildError(f"{bad} of {len(options.archives)} archives refused")
