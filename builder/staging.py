"""A temporary folder beside an archive: in the same file system, so that what is finished in it can be renamed.

It goes when its work is done, however that ends. What a power cut or ``kill -9`` leaves is swept by the next build into
the same folder: a stage's owner holds a lock in it (flock(2)), which the system takes back when the process ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".efft-stage."
_LOCK = "lock"
_GRACE = 60.0
"""Seconds in which a stage without a lock may be one that is being set up."""


@contextmanager
def staging(output: Path, name: str) -> Iterator[Path]:
    """An empty folder in ``output`` for the archive ``name``, but for a lock; leftovers of ended processes go first."""
    _sweep(output)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}.", dir=output))
    descriptor: int | None = None
    try:
        descriptor = _lock(folder)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # a signal, meanwhile: once more, now that further ones are ignored
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if descriptor is not None:
                os.close(descriptor)


def settle(unfinished: Path, target: Path) -> Path:
    """Rename a finished file into its place; after a power cut there is the old file or the whole new one."""
    _sync(unfinished)
    unfinished.replace(target)
    _sync(target.parent)
    return target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    """Take the folder's lock; the descriptor that holds it."""
    descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(output: Path) -> None:
    for folder in output.glob(f"{PREFIX}*"):
        try:
            if not (folder / _LOCK).exists():
                if time.time() - folder.stat().st_mtime > _GRACE:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            descriptor = _lock(folder)
        except OSError:  # another build's, or gone meanwhile
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
