"""An archive's name: TorchServe takes letters, digits, dots, dashes and underscores, and no other first character
than a letter or a digit; folders are called otherwise."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from builder.errors import BuildError

_REFUSED = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 128
"""Bytes: a file's name has 255, and temporary ones are longer than the archive's."""
# Letters that Unicode does not take apart into a Latin one and marks.
_LETTERS = str.maketrans(
    {
        "ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "Oe", "ł": "l", "Ł": "L", "đ": "d",
        "Đ": "D", "þ": "th", "ð": "d", "\u0131": "i",
    }
)  # fmt: skip


def archive_name(given: str | None, source: str) -> str:
    """The name given, else one made of a folder's or hub model's: "my model" -> "my-model", "größe" -> "grosse".

    Raises BuildError where the source has no letter or digit to make one of, or the given name is too long.
    """
    if given is not None:
        if len(given) > _LONGEST:
            raise BuildError(f"the archive's name has {len(given)} characters, at most {_LONGEST} are allowed")
        return given
    last = source.rstrip("/").split("/")[-1]
    plain = unicodedata.normalize("NFKD", last.translate(_LETTERS))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    name = _REFUSED.sub("-", plain).strip("-._")[:_LONGEST]
    if not name:
        raise BuildError(f"no archive name can be made of {last!r}; give one: --name NAME")
    return name


def hub_name(folder: Path) -> tuple[str, str] | None:
    """Name and revision of a snapshot in the hub's cache, ``models--ORG--NAME/snapshots/HASH``; None for any other
    folder."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/"), folder.name


def check_output(output: Path, name: str) -> None:
    """Make the folder for archives. Raises BuildError where no archive of this name can be written into it."""
    target = output / f"{name}.mar"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".{name}.writable"
        probe.touch()
        probe.unlink()
    except FileExistsError as error:
        raise BuildError(f"--output {str(output)!r} is a file; give a folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BuildError(f"--output {str(output)!r} cannot be written to ({reason})") from error
    if target.is_dir():
        raise BuildError(f"{str(target)!r} is a folder where the archive would be written; remove it or give a --name")
