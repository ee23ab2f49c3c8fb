"""The output while it is being made: ``OUT.partial/``, with numbered parts, and a manifest that says of what.

A part holds rows [start, end) and says so in its name; it is written under another name, synced and renamed, so that
after a kill each part is whole or absent. Parts follow each other without a gap: a run goes on where the last one ends.
``OUT`` itself appears by a rename, when every row is there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from handler.bulk.errors import BulkError
from handler.bulk.work import Done

MANIFEST = "_manifest.json"
"""Readers of folders of Parquet pass over names that begin with an underscore."""
DONE = "_done"
"""Is there once the whole file is; it is in place when WHOLE has gone."""
WHOLE = "whole.tmp"
ARCHIVE = "archive"
"""The unpacked archive's folder."""
FULL = 64 << 20
"""Bytes of answers after which a part is closed, however young."""
GROUP = 1 << 17
"""Rows of a row group of a Parquet file that is put together from parts."""
_PART = re.compile(r"part-(\d{12})-(\d{12})\.\w+")


class Partial:
    """One unfinished output.

    ``manifest`` is what a run must have in common with the one before it to go on; ``every``: seconds after which a
    part is closed. Use :meth:`locked`.
    """

    def __init__(self, out: Path, kind: str, manifest: dict[str, Any], every: float, as_folder: bool) -> None:
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self.header = b""
        """What a CSV file begins with."""
        self.kind = kind
        self._manifest = manifest
        self._every = every
        self._as_folder = as_folder
        self._held: list[bytes] = []
        self._size = 0
        self._first = self._next = 0
        self._closed = time.monotonic()

    @contextmanager
    def locked(self, restart: bool = False) -> Iterator[int]:
        """Hold the folder for this run; yields the first row that is not done.

        ``restart``: what another run has left is thrown away. Raises BulkError where another run is at work, or has
        left parts of another input, archive or setting.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BulkError(f"another run is writing {self.out}; wait for it or stop it") from None
            if restart:
                _empty(self.folder)
            self._resume()
            yield self._next
        finally:
            os.close(handle)

    def _resume(self) -> None:
        path = self.folder / MANIFEST
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            for key, value in self._manifest.items():
                if before.get(key) != value:
                    raise BulkError(f"{self.folder} is of a run with another {key}; add --restart to throw it away")
        else:
            _empty(self.folder)
            _write(path, [json.dumps(self._manifest, indent=1, ensure_ascii=False).encode()])
        for file in self.folder.glob("*.tmp"):
            file.unlink()
        for start, end, _ in self.parts():
            if start != self._next:
                raise BulkError(f"{self.folder}: rows {self._next} to {start} are missing; add --restart")
            self._next = end
        self._first = self._next
        self._closed = time.monotonic()

    def parts(self) -> list[tuple[int, int, Path]]:
        """The finished parts: first row, row after the last, file."""
        found = [(_PART.fullmatch(file.name), file) for file in self.folder.iterdir()]
        return sorted((int(match[1]), int(match[2]), file) for match, file in found if match)

    def add(self, done: Done) -> None:
        """Take the next rows. Raises BulkError where they are not the next."""
        if done.start != self._next:
            raise BulkError(f"rows {self._next} to {done.start} got lost on the way; run the command again")
        self._held.append(done.payload)
        self._size += len(done.payload)
        self._next = done.end
        if self._size >= FULL or time.monotonic() - self._closed >= self._every:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a part."""
        self._closed = time.monotonic()
        if not self._held:
            return
        path = self.folder / f"part-{self._first:012}-{self._next:012}.{self.kind}"
        if self.kind == "parquet":
            batches = [batch for payload in self._held for batch in pa.ipc.open_stream(payload)]
            _write_parquet(path, pa.Table.from_batches(batches).combine_chunks())
        else:
            _write(path, [self.header, *self._held])
        self._held, self._size, self._first = [], 0, self._next

    def finish(self, schema: pa.Schema) -> int:
        """Make ``OUT`` of the parts; returns its rows. ``schema``: of an output without rows."""
        self.flush()
        if not self.parts():
            path = self.folder / f"part-{0:012}-{0:012}.{self.kind}"
            if self.kind == "parquet":
                _write_parquet(path, schema.empty_table())
            else:
                _write(path, [self.header])
        shutil.rmtree(self.folder / ARCHIVE, ignore_errors=True)
        if self._as_folder:
            old = self.folder.with_name(self.out.name + ".old")
            if self.out.exists():
                os.rename(self.out, old)
            os.rename(self.folder, self.out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            whole = self._join()
            (self.folder / DONE).touch()
            whole.replace(self.out)
            shutil.rmtree(self.folder)
        _sync(self.out.parent)
        return self._next

    def clear_finished(self) -> bool:
        """Whether a run before this one had its output in place and was killed while it tidied up; then it is."""
        if not (self.folder / DONE).exists() or (self.folder / WHOLE).exists() or not self.out.exists():
            return False
        shutil.rmtree(self.folder)
        return True

    def _join(self) -> Path:
        files = [file for _, _, file in self.parts()]
        whole = self.folder / WHOLE
        if self.kind == "parquet":
            _join_parquet(files, whole)
        else:
            _write(whole, _chunks(files, len(self.header)))
        return whole


def _join_parquet(files: list[Path], whole: Path) -> None:
    with pq.ParquetWriter(whole, pq.read_schema(files[0]), compression="zstd") as writer:
        held: list[pa.Table] = []
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(GROUP):
                held.append(pa.Table.from_batches([batch]))
                if sum(map(len, held)) >= GROUP:
                    writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=GROUP)
                    held = []
        if held:
            writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=GROUP)
    _sync(whole)


def _chunks(files: list[Path], header: int) -> Iterator[bytes]:
    """The files one behind the other, with the first one's header only."""
    for number, file in enumerate(files):
        with file.open("rb") as stream:
            stream.seek(header if number else 0)
            while block := stream.read(1 << 20):
                yield block


def _write_parquet(path: Path, table: pa.Table) -> None:
    half = path.with_name(path.name + ".tmp")
    pq.write_table(table, half, compression="zstd")
    _sync(half)
    half.replace(path)
    _sync(path.parent)


def _write(path: Path, chunks: Any) -> None:
    half = path if path.suffix == ".tmp" else path.with_name(path.name + ".tmp")
    stream: BinaryIO
    with half.open("wb") as stream:
        for chunk in chunks:
            stream.write(chunk)
    _sync(half)
    if half != path:
        half.replace(path)
        _sync(path.parent)


def _sync(path: Path) -> None:
    """What the path holds is on the disk, and of a folder the names (fsync(2))."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
