"""A window's rows, whatever they were read from: values by column, and the problems of rows that could not be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from handler.bulk.sources import LINE, PROBLEM, parsed


class Rows(Protocol):
    """``problems``: place in the window -> what is wrong, as "type: message" (handler/errors.py)."""

    problems: dict[int, str]

    def values(self, name: str) -> list[Any]:
        """A column, None where a row has no such value."""

    def arrays(self, schema: pa.Schema) -> list[pa.Array]:
        """Columns of these names and types; values that do not fit become null, and problems."""

    def objects(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        """The rows as objects of these names, None: of all. A row that could not be read has what there is of it."""


def rows_of(source: str, batch: pa.RecordBatch) -> Rows:
    """The rows of a batch from a source of this kind."""
    return LineRows(batch) if source == "jsonl" else TableRows(batch)


class TableRows:
    """Of Parquet, and of CSV, whose values are bytes until here."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.problems: dict[int, str] = {}
        if PROBLEM in batch.schema.names:
            for place, problem in enumerate(batch.column(PROBLEM).to_pylist()):
                if problem is not None:
                    self.problems[place] = f"invalid_request: {problem}"
            names = [name for name in batch.schema.names if name != PROBLEM]
            batch = pa.record_batch([self._text(batch.column(name), name) for name in names], names=names)
        self._batch = batch

    def values(self, name: str) -> list[Any]:
        """See Rows."""
        return self._batch.column(name).to_pylist()

    def arrays(self, schema: pa.Schema) -> list[pa.Array]:
        """See Rows."""
        return [self._batch.column(name) for name in schema.names]

    def objects(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        """See Rows."""
        return (self._batch if names is None else self._batch.select(list(names))).to_pylist()

    def _text(self, column: pa.Array, name: str) -> pa.Array:
        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            values = column.to_pylist()
        for place, value in enumerate(values):
            try:
                values[place] = None if value is None else value.decode()
            except UnicodeDecodeError:
                values[place] = value.decode(errors="replace")
                self.problems.setdefault(place, f"invalid_encoding: {name} is not UTF-8")
        return pa.array(values, pa.string())


class LineRows:
    """Of JSON Lines."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._lines = batch.column(LINE).to_pylist()
        self._rows: list[dict[str, Any]] = []
        self.problems: dict[int, str] = {}
        for place, line in enumerate(self._lines):
            value = parsed(line)
            if isinstance(value, str):
                self.problems[place] = value
                value = {}
            self._rows.append(value)

    def values(self, name: str) -> list[Any]:
        """See Rows."""
        return [row.get(name) for row in self._rows]

    def arrays(self, schema: pa.Schema) -> list[pa.Array]:
        """See Rows."""
        return [self._array(field) for field in schema]

    def objects(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        """See Rows. Of a line that is no object its text remains, as ``line``."""
        rows = [row if names is None else {name: row[name] for name in names if name in row} for row in self._rows]
        for place in self.problems:
            if not self._rows[place]:
                rows[place] = {"line": self._lines[place].decode(errors="replace")}
        return rows

    def _array(self, field: pa.Field) -> pa.Array:
        values = self.values(field.name)
        if pa.types.is_string(field.type):
            values = [value if value is None or isinstance(value, str) else _json(value) for value in values]
        try:
            return pa.array(values, field.type)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            return pa.concat_arrays([self._single(place, value, field) for place, value in enumerate(values)])

    def _single(self, place: int, value: Any, field: pa.Field) -> pa.Array:
        try:
            return pa.array([value], field.type)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            kept = f"invalid_request: {field.name} does not fit the type {field.type} of the first lines; left out"
            self.problems.setdefault(place, kept)
            return pa.nulls(1, field.type)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
