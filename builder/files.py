"""Read a checkpoint folder's small files: what is wrong with one is said in a line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from builder.errors import BuildError

MOST_BYTES = 2**28
"""Of a JSON file: the largest tokenizers have some 35 MB."""
_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path) -> None:
    """Raises BuildError for what Git LFS leaves in a file's place where it did not fetch it, and for an empty file."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise BuildError(f"{path.name} cannot be read ({error.strerror or error})") from error
    if start == _POINTER:
        raise BuildError(f"{path.name} is a Git LFS pointer, not the file itself; run git lfs pull in its folder")
    if not start:
        raise BuildError(f"{path.name} is empty; copy the checkpoint again")


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises BuildError in one line that names the file."""
    refuse_pointer(path)
    if path.stat().st_size > MOST_BYTES:
        raise BuildError(f"{path.name} has {path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise BuildError(f"{path.name} is nested too deeply to be read") from error
    except (OSError, ValueError) as error:
        raise BuildError(f"{path.name} is not JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise BuildError(f"{path.name} holds a {type(content).__name__} where a JSON object belongs")
    return content


def first_line(error: BaseException, most: int = 300) -> str:
    """What an exception says, in one line of at most ``most`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."
