"""What is done to a window of rows: parse, score, and write in the output's form. The same in every kind of worker."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv

from handler.bulk.errors import BulkError
from handler.bulk.rows import Rows, rows_of
from handler.bulk.scorer import Scorer, request_of
from handler.columns import ERROR
from handler.errors import RequestError


@dataclass(frozen=True)
class Job:
    """What a run does to every row; it is pickled to the workers.

    ``source`` and ``target``: parquet, jsonl or csv. ``columns``: the request's fields and the columns that hold them.
    ``kept``: the columns of the input that the output has too; ``keep_all``: that is all of them.
    """

    source: str
    target: str
    columns: Mapping[str, str]
    kept: pa.Schema
    keep_all: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""


@dataclass(frozen=True)
class Done:
    """Rows [start, end) as they are to be written. ``payload``: of Parquet an Arrow IPC stream, else lines."""

    start: int
    end: int
    errors: int
    payload: bytes


class Work:
    """Scores windows of a job's rows."""

    def __init__(self, job: Job, scorer: Scorer) -> None:
        """Raises BulkError where the answers' columns have names of the input's."""
        self._job = job
        self._scorer = scorer
        own = [field.with_name(job.prefix + field.name) for field in scorer.schema]
        if taken := [field.name for field in own if field.name in job.kept.names]:
            raise BulkError(f"the input has a column {taken[0]!r} already; name the answers apart, say --prefix efft_")
        self.schema = pa.schema([*job.kept, *own])
        """Of a table that is written."""

    def __call__(self, start: int, batch: pa.RecordBatch) -> Done:
        """Score the window that begins with row ``start``."""
        rows = rows_of(self._job.source, batch)
        columns = self._job.columns
        values = zip(*(rows.values(name) for name in columns.values()), strict=True)
        requests: list[dict[str, Any] | RequestError] = [request_of(columns, row) for row in values]
        for place, problem in rows.problems.items():
            type, _, message = problem.partition(": ")
            requests[place] = RequestError(type, message)
        return self._done(start, rows, self._scorer.score(requests))

    @property
    def lost(self) -> bool:
        """Whether the device has failed for good: what has just been done must be done again in a new process."""
        return self._scorer.engine.lost

    def refuse(self, start: int, batch: pa.RecordBatch, message: str) -> Done:
        """The window with ``message`` as every row's error."""
        error = RequestError("internal", message)
        return self._done(start, rows_of(self._job.source, batch), self._scorer.score([error] * batch.num_rows))

    def _done(self, start: int, rows: Rows, answers: pa.RecordBatch) -> Done:
        if self._job.target == "jsonl":
            errors, payload = self._lines(rows, answers)
        else:
            table = self._table(rows, answers)
            errors = len(table) - table.column(self._job.prefix + ERROR).null_count
            payload = _stream(table) if self._job.target == "parquet" else _csv(table)
        return Done(start, start + len(answers), errors, payload)

    def _table(self, rows: Rows, answers: pa.RecordBatch) -> pa.RecordBatch:
        kept = rows.arrays(self._job.kept)
        errors = answers.column(ERROR).to_pylist() if rows.problems else None
        for place, problem in rows.problems.items():  # among them what did not fit the kept columns' types
            errors[place] = errors[place] or problem  # type: ignore[index]
        own = [answers.column(name) for name in answers.schema.names if name != ERROR]
        last = answers.column(ERROR) if errors is None else pa.array(errors, pa.string())
        return pa.record_batch([*kept, *own, last], schema=self.schema)

    def _lines(self, rows: Rows, answers: pa.RecordBatch) -> tuple[int, bytes]:
        objects = rows.objects(None if self._job.keep_all else self._job.kept.names)
        names = [self._job.prefix + name for name in answers.schema.names]
        lines, errors = [], 0
        columns = [column.to_pylist(maps_as_pydicts="strict") for column in answers.columns]
        for own, *answer in zip(objects, *columns, strict=True):
            named = {name: value for name, value in zip(names, answer, strict=True) if value is not None}
            if not own.keys().isdisjoint(named):
                taken = next(name for name in named if name in own)
                problem = f"invalid_request: the row has a field {taken!r} of its own; use --prefix"
                named = {names[-1]: problem}
            errors += names[-1] in named
            lines.append(to_json({**own, **named}))
        return errors, b"".join(map(_line, lines))


def to_json(value: Any) -> str:
    """JSON in one line; what JSON has no form for becomes text, what is no number null."""
    try:
        return _ENCODER.encode(value)
    except ValueError:
        return _ENCODER.encode(_finite(value))


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(text: str) -> bytes:
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can write but UTF-8 cannot
        return json.dumps(json.loads(text)).encode() + b"\n"


def _stream(table: pa.RecordBatch) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table)
    return sink.getvalue()


def _csv(table: pa.RecordBatch) -> bytes:
    sink = io.BytesIO()
    csv.write_csv(flat(table), sink, csv.WriteOptions(include_header=False))
    return sink.getvalue()


def flat(table: pa.RecordBatch) -> pa.RecordBatch:
    """The table as CSV can hold it: lists and objects as JSON."""
    return pa.record_batch([_flat(column) for column in table.columns], names=table.schema.names)


def _flat(column: pa.Array) -> pa.Array:
    if not pa.types.is_nested(column.type):
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        if not any(test(column.type) for test in (pa.types.is_binary, pa.types.is_large_binary)):
            return column
        return pa.array([None if value is None else _plain(value) for value in column.to_pylist()], pa.string())
    values = column.to_pylist(maps_as_pydicts="strict")
    return pa.array([None if value is None else to_json(value) for value in values], pa.string())
