"""Answers by column, as arrays: what bulk work wants in place of an object for each row."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any, Literal, get_args, get_origin

import numpy as np
from pydantic import BaseModel

from handler.errors import RequestError

Kind = Literal["text", "real", "whole", "vector", "nested"]
ERROR = "error"
"""The column of what is wrong with a row."""
_VECTORS = ("embedding",)
"""Lists of numbers that have one length in all rows."""


def kinds(answer: type[BaseModel]) -> dict[str, Kind]:
    """An answer's fields and what each holds, read off its schema: the schema's order, options last."""
    fields = {name: _kind(name, info.annotation) for name, info in answer.model_fields.items()}
    options = [name for name, info in answer.model_fields.items() if not info.is_required()]
    return {name: fields[name] for name in sorted(fields, key=lambda name: name in options)}


def _kind(name: str, annotation: Any) -> Kind:
    plain = [part for part in get_args(annotation) if part is not type(None)] or [annotation]
    if list[float] in (annotation, *plain) and name in _VECTORS:  # as numbers; no column holds base64
        return "vector"
    if get_origin(annotation) is list or len(plain) > 1:
        plain = [annotation]
    names: dict[Any, Kind] = {str: "text", float: "real", int: "whole"}
    return names.get(plain[0], "nested")


def to_columns(answer: type[BaseModel], answers: Many[dict[str, Any] | RequestError]) -> dict[str, np.ndarray]:
    """Columns of the fields of ``answer`` and one of errors, each with a row for each of ``answers``.

    text, nested: objects, None where there is none; real: float64, NaN; whole: int64, -1 (0 for what counts); vector:
    float32 [rows, width], NaN, with width 0 where no row has an answer.
    """
    columns: dict[str, np.ndarray] = {}
    for name, kind in kinds(answer).items():
        values = [None if isinstance(row, RequestError) else row.get(name) for row in answers]
        if kind == "real":
            columns[name] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        elif kind == "whole":
            absent = 0 if name == "dropped_tokens" else -1
            columns[name] = np.array([absent if value is None else value for value in values], dtype=np.int64)
        elif kind == "vector":
            columns[name] = _vectors(values)
        else:
            columns[name] = _objects(values)
    columns[ERROR] = _objects([row if isinstance(row, RequestError) else None for row in answers])
    return columns


def _vectors(values: Many[Any]) -> np.ndarray:
    width = max((len(value) for value in values if value is not None), default=0)
    vectors = np.full((len(values), width), np.nan, dtype=np.float32)
    for row, value in enumerate(values):
        if value is not None:
            vectors[row, : len(value)] = value
    return vectors


def _objects(values: Many[Any]) -> np.ndarray:
    """One by one: np.array would make more dimensions of lists of one length."""
    plain = (value.tolist() if isinstance(value, np.ndarray) else value for value in values)
    return np.fromiter(plain, dtype=object, count=len(values))
