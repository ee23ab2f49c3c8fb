"""The callable that scores tables: in a process of its own, in an actor of Ray, in a task of Spark."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from handler.archive import ArchiveFacts
from handler.bulk.errors import BulkError
from handler.canary import canary_request
from handler.columns import ERROR, kinds
from handler.engine import Engine
from handler.errors import RequestError

FIELDS: dict[str, tuple[str, ...]] = {
    "sequence_classification": ("text", "text_pair"),
    "question_answering": ("question", "context"),
    "token_classification": ("text",),
    "embedding": ("text",),
    "rerank": ("query", "text"),
    "fill_mask": ("text",),
    "zero_shot_classification": ("text", "candidate_labels"),
    "sparse_embedding": ("text",),
    "multi_vector_embedding": ("text",),
    "hybrid_embedding": ("text",),
}
"""The texts of each task's request, in the order in which columns are given; rerank takes one ``text``, or a list of
them as ``texts``."""
OPTIONAL = ("text_pair", "candidate_labels")
"""Fields that a request may do without."""


class Scorer:
    """Tables in, the same rows with the columns of their answers out; a row that has none says why in ``error``.

    ``archive``: as :meth:`handler.engine.Engine.open` takes it. ``columns``: the request's fields and the columns that
    hold them; None: columns of the fields' own names. ``options``: of every request (``{"top_k": 3}``). ``prefix``:
    goes before the answers' names. The model is loaded at the first use: before it, a scorer can be pickled.

    Ray Data: ``dataset.map_batches(Scorer, fn_constructor_kwargs={"archive": "NAME.mar"}, batch_format="pyarrow")``.
    Spark: ``frame.mapInPandas(Scorer("NAME.mar", threads=1).frames, schema)``.
    """

    def __init__(
        self,
        archive: Path | str,
        columns: Mapping[str, str] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        prefix: str = "",
        device: str | None = None,
        threads: int = 0,
    ) -> None:
        self.columns = dict(columns or {})
        self.options = dict(options or {})
        self.prefix = prefix
        self._arguments: dict[str, Any] = {"path": str(archive), "device": device, "threads": threads}
        self._engine: Engine | None = None
        self._schema: pa.Schema | None = None

    @classmethod
    def around(cls, engine: Engine, columns: Mapping[str, str], options: Mapping[str, Any], prefix: str) -> Scorer:
        """A scorer that uses a loaded engine."""
        scorer = cls("", columns, options=options, prefix=prefix)
        scorer._engine = engine
        return scorer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None, "_schema": None}

    @property
    def engine(self) -> Engine:
        """The engine, opened at the first use. Raises ArchiveError or ConfigError."""
        if self._engine is None:
            self._engine = Engine.open(**self._arguments)
        return self._engine

    @property
    def schema(self) -> pa.Schema:
        """The answers' columns, ``error`` last. Raises BulkError where an option is none of the task's."""
        if self._schema is None:
            self._schema = answer_schema(self.engine, self.options, self._one_text())
        return self._schema

    def __call__(self, table: pa.Table | pa.RecordBatch) -> pa.Table:
        """The table with the answers' columns behind its own. Raises BulkError where a text's column is missing."""
        answers = self.score(self._requests(table))
        columns = dict(zip(table.schema.names, table.columns, strict=True))
        named = {self.prefix + name: answers.column(name) for name in answers.schema.names}
        if taken := [name for name in named if name in columns]:
            raise BulkError(f"the table has a column {taken[0]!r} already; give a prefix for the answers")
        return pa.table({**columns, **named})

    def frames(self, frames: Iterator[Any]) -> Iterator[Any]:
        """For Spark's ``mapInPandas``: pandas frames in, pandas frames out."""
        for frame in frames:
            yield self(pa.Table.from_pandas(frame, preserve_index=False)).to_pandas()

    def score(self, rows: Sequence[dict[str, Any] | RequestError]) -> pa.RecordBatch:
        """The answers to requests without their options, as ``schema`` says. Rows that are errors stay errors."""
        requests = [row if isinstance(row, RequestError) else {**row, **self.options} for row in rows]
        if self._one_text():
            requests = [row if isinstance(row, RequestError) else _as_list(row) for row in requests]
        columns = self.engine.columns(requests)
        if self._one_text():
            columns["score"] = _only_scores(columns.pop("results"))
        bad = np.array([error is not None for error in columns[ERROR]], dtype=bool)
        arrays = [self._array(field, columns[field.name], bad) for field in self.schema]
        return pa.record_batch(arrays, schema=self.schema)

    def _one_text(self) -> bool:
        return self.engine.facts.task == "rerank" and "texts" not in self.columns

    def _requests(self, table: pa.Table | pa.RecordBatch) -> list[dict[str, Any] | RequestError]:
        fields = self.columns or default_columns(self.engine.facts.task, table.schema.names)
        if missing := [name for name in fields.values() if name not in table.schema.names]:
            raise BulkError(f"the table has no column {missing[0]!r}, but {', '.join(table.schema.names)}")
        values = [table.column(name).to_pylist() for name in fields.values()]
        return [request_of(fields, row) for row in zip(*values, strict=True)]

    @staticmethod
    def _array(field: pa.Field, column: np.ndarray, bad: np.ndarray) -> pa.Array:
        if field.name == ERROR:
            return pa.array([None if e is None else f"{e.type}: {e.message}" for e in column], pa.string())
        if pa.types.is_fixed_size_list(field.type):
            width = field.type.list_size
            whole = column if column.shape[1] == width else np.zeros((len(column), width), dtype=np.float32)
            flat = pa.array(whole.reshape(-1), pa.float32())
            return pa.FixedSizeListArray.from_arrays(flat, type=field.type, mask=pa.array(bad))
        absent = bad | np.isnan(column) if column.dtype.kind == "f" else bad
        return pa.array(column, type=field.type, mask=absent)


def request_of(fields: Mapping[str, str], values: Sequence[Any]) -> dict[str, Any] | RequestError:
    """A request's fields from a row's values; an optional field that is null is left out."""
    request = dict(zip(fields, values, strict=True))
    for field, value in list(request.items()):
        if value is None and field in OPTIONAL:
            del request[field]
        elif value is None:
            return RequestError("empty", f"{fields[field]} is null", field)
    return request


def default_columns(task: str, names: Sequence[str]) -> dict[str, str]:
    """Columns named as the task's fields. Raises BulkError where one is missing."""
    fields = list(FIELDS[task])
    if task == "rerank" and "texts" in names and "text" not in names:
        fields = ["query", "texts"]
    wanted = [field for field in fields if field in names or field not in OPTIONAL]
    if missing := [field for field in wanted if field not in names]:
        listed = ", ".join(map(repr, names[:20]))
        raise BulkError(f"the input has no column {missing[0]!r}; name one with --column. It has {listed}")
    return {field: field for field in wanted}


def answer_schema(engine: Engine, options: Mapping[str, Any], one_text: bool) -> pa.Schema:
    """Arrow types of the columns of an engine's answers. Raises BulkError where an option is none of the task's."""
    if unknown := [name for name in options if name not in engine.task.request.model_fields]:
        known = sorted(set(engine.task.request.model_fields) - {"texts", *sum(FIELDS.values(), ())})
        raise BulkError(f"{unknown[0]!r} is no option of {engine.facts.task}; its options are {', '.join(known)}")
    known_request = canary_request(engine.facts.task, engine.task.tokenizer.token(engine.facts.mask_id))
    probe = engine.columns([{**known_request, **options}])
    if (error := probe[ERROR][0]) is not None:
        where = f"option {error.field}: " if error.field in options else ""
        raise BulkError(f"{where}{error.message}")
    answer = engine.task.answer
    fields = []
    for name, kind in kinds(answer).items():
        if name in _unused(engine, options):
            continue
        if kind == "vector":
            fields.append(pa.field(name, pa.list_(pa.float32(), probe[name].shape[1])))
        else:
            fields.append(pa.field(name, arrow_type(answer.model_fields[name].annotation)))
    if one_text:
        fields = [pa.field("score", pa.float64()) if field.name == "results" else field for field in fields]
    return pa.schema([*fields, pa.field(ERROR, pa.string())])


def _unused(engine: Engine, options: Mapping[str, Any]) -> set[str]:
    """Fields that no answer has under these settings."""
    config, facts = engine.config, engine.facts
    unused = set()
    several = options.get("top_k") or config.top_k or facts.problem_type == "multi_label_classification"
    if facts.task == "sequence_classification" and not several:
        unused.add("labels")
    if facts.task == "multi_vector_embedding":  # of texts alone, not of queries with texts
        unused.add("results")
    if facts.task == "hybrid_embedding":
        wanted = options.get("outputs") or config.outputs or facts.outputs
        unused |= {field for output, field in _OF_OUTPUTS.items() if output not in wanted}
    if int(options.get("n_best") or config.n_best) == 1:
        unused.add("answers")
    if not config.null_answer:
        unused.add("no_answer_score")
    return unused


_OF_OUTPUTS = {"dense": "embedding", "sparse": "sparse_embedding", "multi_vector": "token_embeddings"}
"""A hybrid embedding's outputs -> the columns that hold them."""


def arrow_type(annotation: Any) -> pa.DataType:
    """Of a field of an answer's schema (handler/schemas.py)."""
    if get_origin(annotation) in (types.UnionType, Union):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is dict:
        return pa.map_(*map(arrow_type, get_args(annotation)))
    if get_origin(annotation) is list:
        return pa.list_(arrow_type(get_args(annotation)[0]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([(name, arrow_type(info.annotation)) for name, info in annotation.model_fields.items()])
    return {str: pa.string(), float: pa.float64(), int: pa.int64()}[annotation]


def _as_list(row: dict[str, Any]) -> dict[str, Any]:
    text = row["text"]
    return {**{name: value for name, value in row.items() if name != "text"}, "texts": [text]}


def _only_scores(results: np.ndarray) -> np.ndarray:
    return np.array([np.nan if result is None else result[0]["score"] for result in results], dtype=np.float64)


def task_of(folder: Path) -> str:
    """An unpacked archive's task. Raises ArchiveError."""
    return ArchiveFacts.load(folder / "archive.json").task
