"""What is read: Parquet, JSON Lines and CSV files, one or a folder of them, as a stream of Arrow batches.

A row that cannot be read is a row all the same: it keeps its place, with what is wrong in the column PROBLEM. So CSV
is read as bytes (a value that is no UTF-8 is its row's fault) and JSON Lines as lines, which workers parse.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from handler.bulk.errors import BulkError, one_line

LINE = "\0line"
"""The one column of JSON Lines: a line's bytes."""
PROBLEM = "\0problem"
"""The column of what is wrong with a row, null where nothing is. NUL keeps both names apart from a file's own."""
BLOCK = 4 << 20
"""Bytes read at a time."""
LONGEST_LINE = 64 << 20
"""Bytes of a line of JSON: one object, not the whole file."""
SAMPLE = 1000
"""Lines of JSON that say which fields there are, and of what type."""
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv"}


def kind_of(path: Path) -> str | None:
    """parquet, jsonl or csv, by the name; None for another."""
    name = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return _KINDS.get(name.suffix.lower())


class Source(ABC):
    """Files of one kind, read one after the other. ``schema``: the columns that a row has."""

    kind: str
    rows: int | None = None
    """How many there are, None where only reading would tell."""
    raw: pa.Schema
    """Of the batches."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.schema = self._schema_of(paths[0])
        self._size = sum(path.stat().st_size for path in paths)
        self._before = self._read = 0
        self._stream: IO[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}

    def batches(self, start: int = 0) -> Iterator[pa.RecordBatch]:
        """The rows from number ``start`` on. Raises BulkError where a file is damaged or unlike the first."""
        self._before = self._read = 0
        for path in self.paths:
            try:
                for batch in self._batches(path, start):
                    skipped = min(start, batch.num_rows)
                    self._read += batch.num_rows
                    start -= skipped
                    if skipped < batch.num_rows:
                        yield batch.slice(skipped)
            except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
                raise BulkError(f"{path.name} cannot be read ({one_line(error)[:300]})") from error
            self._before += path.stat().st_size

    def total(self) -> int | None:
        """How many rows there are, by the share of the bytes that has been read; None before any has."""
        if self.rows is not None or not self._read:
            return self.rows
        try:
            here = self._stream.tell() if self._stream and not self._stream.closed else 0
        except (OSError, ValueError):
            here = 0
        return self._read * max(1, self._size) // max(1, self._before + here)

    def holds_lists(self, name: str) -> bool:
        """Whether a column's values are lists."""
        type = self.schema.field(name).type
        return pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)

    @abstractmethod
    def _schema_of(self, path: Path) -> pa.Schema: ...

    @abstractmethod
    def _batches(self, path: Path, start: int) -> Iterator[pa.RecordBatch]:
        """All batches of a file; those before row ``start`` may have any content of the right length."""

    def _open(self, path: Path) -> Any:
        self._stream = path.open("rb")
        compression = _COMPRESSIONS.get(path.suffix)
        return pa.input_stream(self._stream, compression=compression, buffer_size=BLOCK)


class ParquetSource(Source):
    """Row groups are decoded one at a time."""

    kind = "parquet"

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(paths)
        self.raw = self.schema
        counts = [self._file(path).metadata.num_rows for path in paths]
        self.rows = sum(counts)

    @staticmethod
    def _file(path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise BulkError(f"{path.name} is not a Parquet file ({one_line(error)[:200]})") from error

    def _schema_of(self, path: Path) -> pa.Schema:
        return self._file(path).schema_arrow.remove_metadata()

    def _batches(self, path: Path, start: int) -> Iterator[pa.RecordBatch]:
        file = self._file(path)
        if not file.schema_arrow.remove_metadata().equals(self.schema):
            raise BulkError(f"{path.name} has other columns than {self.paths[0].name}; score them one by one")
        first = 0
        # Groups that a run before this one has done are not decoded again: empty columns stand for them.
        while first < file.num_row_groups and start >= (rows := file.metadata.row_group(first).num_rows):
            yield _blank(rows)
            start -= rows
            first += 1
        groups = list(range(first, file.num_row_groups))
        if groups:
            yield from file.iter_batches(8192, row_groups=groups, use_threads=False)


def _blank(rows: int) -> pa.RecordBatch:
    return pa.record_batch([pa.nulls(rows)], names=[PROBLEM])


class CsvSource(Source):
    """Columns of bytes, with a header line; tabs apart in ``.tsv``, commas otherwise."""

    kind = "csv"

    def _schema_of(self, path: Path) -> pa.Schema:
        try:
            names = csv.open_csv(self._open(path), self._reading(), self._parsing(path, lambda _: "skip")).schema.names
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            raise BulkError(f"{path.name} is not a CSV file ({one_line(error)[:200]})") from error
        if doubled := [name for name in names if names.count(name) > 1]:
            raise BulkError(f"{path.name}: the header names {doubled[0]!r} twice; rename one")
        self.raw = pa.schema([*((name, pa.binary()) for name in names), (PROBLEM, pa.string())])
        return pa.schema([(name, pa.string()) for name in names])

    @staticmethod
    def _reading() -> csv.ReadOptions:
        # Without threads rows are numbered, which bad ones need to keep their places.
        return csv.ReadOptions(use_threads=False, block_size=BLOCK)

    @staticmethod
    def _parsing(path: Path, bad: Any) -> csv.ParseOptions:
        name = path.with_suffix("").name if path.suffix in _COMPRESSIONS else path.name
        delimiter = "\t" if name.lower().endswith(".tsv") else ","
        return csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=bad)

    def _batches(self, path: Path, start: int) -> Iterator[pa.RecordBatch]:
        bad: list[tuple[int, str]] = []

        def note(row: csv.InvalidRow) -> str:
            bad.append((row.number, f"{row.actual_columns} columns, the header has {row.expected_columns}"))
            return "skip"

        names = self.schema.names
        as_bytes = csv.ConvertOptions(
            column_types={name: pa.binary() for name in names}, strings_can_be_null=False, null_values=[]
        )
        stream = csv.open_csv(self._open(path), self._reading(), self._parsing(path, note), as_bytes)
        if stream.schema.names != names:
            raise BulkError(f"{path.name} has other columns than {self.paths[0].name}; score them one by one")
        place = _FIRST_ROW
        for batch in stream:
            whole, place = self._with_bad(batch, bad, place)
            yield whole
        if bad:
            nothing = pa.record_batch([pa.array([], pa.binary())] * len(names), names=names)
            yield self._with_bad(nothing, bad, place)[0]

    def _with_bad(self, batch: pa.RecordBatch, bad: list[tuple[int, str]], place: int) -> tuple[pa.RecordBatch, int]:
        """The batch with the bad rows (number, problem) in their places, and the number of the row after it.

        ``place``: the number of its first row. Bad rows of later batches stay in ``bad``: the reader reads ahead.
        """
        pieces = []
        done = 0
        while bad and bad[0][0] <= place + batch.num_rows - done:
            number, problem = bad.pop(0)
            pieces += [self._good(batch.slice(done, number - place)), self._bad(problem)]
            done, place = done + number - place, number + 1
        pieces.append(self._good(batch.slice(done)))
        return pa.concat_batches(pieces), place + batch.num_rows - done

    def _good(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch([*batch.columns, pa.nulls(batch.num_rows, pa.string())], schema=self.raw)

    def _bad(self, problem: str) -> pa.RecordBatch:
        nothing = [pa.nulls(1, field.type) for field in self.raw][:-1]
        return pa.record_batch([*nothing, pa.array([problem])], schema=self.raw)


_FIRST_ROW = 2
"""How Arrow numbers the row after the header."""


class LinesSource(Source):
    """One JSON object a line; blank lines are no rows. The schema is that of the first lines."""

    kind = "jsonl"
    raw = pa.schema([(LINE, pa.binary())])

    def _schema_of(self, path: Path) -> pa.Schema:
        """Of the fields of the first SAMPLE lines that are objects; a field of no one type is kept as JSON text."""
        rows = []
        try:
            for line in islice(self._lines(path), SAMPLE):
                value = parsed(line)
                rows += [value] if isinstance(value, dict) else []
        except (pa.ArrowException, OSError, EOFError) as error:
            raise BulkError(f"{path.name} cannot be read ({one_line(error)[:300]})") from error
        if not rows:
            raise BulkError(f"{path.name} holds no JSON objects in its first {SAMPLE} lines; each line must be one")
        return pa.schema([(name, _type([row.get(name) for row in rows])) for name in dict.fromkeys(chain(*rows))])

    def _lines(self, path: Path) -> Iterator[bytes]:
        for block in self._blocks(path):
            yield from block

    def _blocks(self, path: Path) -> Iterator[list[bytes]]:
        """Lines that hold anything, a block's at a time."""
        rest = b""
        with self._open(path) as stream:
            while block := stream.read(BLOCK):
                if not rest and block.startswith(b"\xef\xbb\xbf"):
                    block = block[3:]
                *lines, rest = (rest + block).split(b"\n")
                if len(rest) > LONGEST_LINE:
                    raise BulkError(f"{path.name} has a line of more than {LONGEST_LINE >> 20} MiB; is it JSON Lines?")
                yield [line for line in lines if line and not line.isspace()]
        if rest and not rest.isspace():
            yield [rest]

    def _batches(self, path: Path, start: int) -> Iterator[pa.RecordBatch]:
        for lines in self._blocks(path):
            if lines:
                yield pa.record_batch([pa.array(lines, pa.binary())], schema=self.raw)


def parsed(line: bytes) -> Any:
    """A line's JSON; a string that says what is wrong with a line that is none, or no object."""
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError:
        return "invalid_encoding: the line is not UTF-8"
    except json.JSONDecodeError as error:
        return f"invalid_json: the line is not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError):
        return "invalid_json: the line is not JSON: a number is out of range, or it is nested too deeply"
    return value if isinstance(value, dict) else "invalid_request: the line is not a JSON object"


def _refused(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refused)
"""Made once: json.loads makes a new one at each call that has an option."""


def _type(values: list[Any]) -> pa.DataType:
    try:
        type = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()
    return pa.string() if pa.types.is_null(type) else type


_SOURCES: dict[str, type[Source]] = {"parquet": ParquetSource, "csv": CsvSource, "jsonl": LinesSource}


def open_source(path: Path) -> Source:
    """A file, or a folder of files of one kind in the order of their names. Raises BulkError in one line."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] not in "._")
        kinds = {kind_of(file) for file in files}
        if len(kinds) != 1:
            found = ", ".join(sorted({file.suffix or file.name for file in files})) or "nothing"
            raise BulkError(f"{path} must hold files of one kind, .parquet, .jsonl or .csv; it holds {found}")
    elif path.is_file():
        files, kinds = [path], {kind_of(path)}
    else:
        raise BulkError(f"there is no file or folder {str(path)!r}")
    kind = kinds.pop()
    if kind is None:
        raise BulkError(f"{files[0].name}: the input must be .parquet, .jsonl (.ndjson) or .csv (.tsv)")
    return _SOURCES[kind](files)


def windows(
    batches: Iterator[pa.RecordBatch], rows: int, size: int, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most ``rows``, or of at most ``size`` bytes in ``columns`` (None: in all) unless
    a single row is larger. Only the last one may be small for no reason."""
    held: list[pa.RecordBatch] = []
    count = weight = 0
    for batch in batches:
        sizes = _sizes(batch, columns)
        first = 0
        while first < batch.num_rows:
            room = int(np.searchsorted(np.cumsum(sizes[first : first + rows - count]), size - weight, side="right"))
            room = max(room, 0 if held else 1)
            if room:
                held.append(batch.slice(first, room))
                count += room
                weight += int(sizes[first : first + room].sum())
                first += room
            if first < batch.num_rows or count >= rows:
                yield pa.concat_batches(held)
                held, count, weight = [], 0, 0
    if held:
        yield pa.concat_batches(held)


def _sizes(batch: pa.RecordBatch, columns: list[str] | None) -> np.ndarray:
    """Bytes of each row's texts; of lists, which Arrow does not measure by row, the batch's mean."""
    total = np.zeros(batch.num_rows, dtype=np.int64)
    for name in columns or batch.schema.names:
        if name not in batch.schema.names:
            continue
        column = batch.column(name)
        try:
            total += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        except pa.ArrowNotImplementedError:
            total += column.nbytes // max(1, len(column))
    return total
