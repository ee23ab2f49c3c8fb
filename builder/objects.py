"""Compile and link with a cache keyed by content: a library is made again only from what changed.

An object's key covers its source, every header that it reaches through ``#include``, the compiler and the flags, so
that touching a header rebuilds its users and nothing else. The includes are followed by their text rather than by a
compiler's depfile, which would be known only after the first build. Builds may run side by side: files are written
under names of their own and renamed. Nothing but a compiler is needed, on the building machine or in an image, which is
why there is no CMake or Ninja here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from builder.errors import BuildError

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One compiler call: ``command`` plus ``-c source -o object``."""

    source: Path
    command: tuple[str, ...]


def build(
    name: str, steps: Sequence[Step], link: Sequence[str], libraries: Sequence[str], *, build_folder: Path, root: Path
) -> Path:
    """Compile ``steps`` and link them into the library ``name``.

    ``libraries`` follow the objects on the command line; ``root`` is the folder that includes in quotes are found from.
    Returns the library's path in ``build_folder``. Raises BuildError for a compiler's or the linker's error.
    """
    objects = build_folder / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    outputs = [objects / f"{digest(step, root)}-{step.source.stem}.o" for step in steps]
    linked = [argument for argument in libraries if not argument.startswith("-L")]
    key = hashlib.sha256("\n".join([*(o.name for o in outputs), *link, *linked]).encode()).hexdigest()[:16]
    library = build_folder / key / name
    if library.exists():
        return library
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(compile_one, steps, outputs))
    library.parent.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}.tmp")
    run([*link, *map(str, outputs), *libraries, "-o", str(partial)], name)
    partial.replace(library)
    return library


def compile_one(step: Step, output: Path) -> None:
    """Compile a step unless its object is there. Raises BuildError naming the source."""
    if output.exists():
        return
    partial = output.with_suffix(f".{os.getpid()}.tmp")
    try:
        run([*step.command, "-c", str(step.source), "-o", str(partial)], step.source.name)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def digest(step: Step, root: Path) -> str:
    """The key of a step's object."""
    flags = " ".join(flag for flag in step.command if not flag.startswith("-I") and "-prefix-map" not in flag)
    found = hashlib.sha256("\n".join([_version(step.command[0]), flags]).encode())
    headers, torch_too = reached(step.source, root)
    for path in (step.source, *headers):
        found.update(path.name.encode() + path.read_bytes())
    if torch_too:
        found.update(torch.__version__.encode())
    return found.hexdigest()[:16]


def reached(source: Path, root: Path) -> tuple[list[Path], bool]:
    """The project's headers that a source includes, directly or not, sorted; and whether it includes torch's."""
    headers: set[Path] = set()
    torch_too = False
    waiting = [source]
    while waiting:
        path = waiting.pop()
        for bracket, name in _INCLUDE.findall(path.read_bytes()):
            if bracket == b"<":
                torch_too = torch_too or name.startswith((b"torch/", b"ATen/", b"c10/"))
                continue
            candidates = ((path.parent / name.decode()).resolve(), (root / name.decode()).resolve())
            header = next((candidate for candidate in candidates if candidate.is_file()), None)
            if header is not None and header not in headers:
                headers.add(header)
                waiting.append(header)
    return sorted(headers), torch_too


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def tool(name: str, what: str) -> str:
    """The path of a compiler. Raises BuildError that says to install ``what`` where it is missing."""
    path = shutil.which(name)
    if path is None:
        raise BuildError(f"compiler {name!r} not found on PATH; install {what}")
    return path


def run(command: Sequence[str], what: str) -> None:
    """Run a compiler. Raises BuildError with its first errors."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line][:5] or result.stderr.splitlines()[-5:]
        raise BuildError(f"compiling {what} failed:\n  " + "\n  ".join(errors))
