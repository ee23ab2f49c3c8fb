"""Arbitrary bodies: an answer or a client's error, never an internal one, and never a word of the body repeated."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from handler.predictor import Predictor

KEYS = st.sampled_from(
    ["text", "text_pair", "question", "context", "top_k", "truncation", "stride", "n_best", "inputs", "parameters",
     "instances", "data", "body", "null_threshold", "max_answer_length", "datatype", "name", "shape", "target", ""]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["stride", "error", "BYTES"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
TYPES = st.sampled_from([None, "", "application/json", "text/plain", "text/plain; charset=utf-8", "image/png"])


def check(predictor: Predictor, row: Any, kind: str | None) -> None:
    reply = predictor.predict([{"body": row}], [kind])[0]
    text = json.dumps(reply.payload)
    assert reply.status in (200, 400, 413, 422), text
    assert '"internal"' not in text
    assert reply.phrase.isascii()


@settings(max_examples=300, deadline=None)
@given(value=VALUES, kind=TYPES)
@example(value={"inputs": [{"datatype": "BYTES", "data": ["{"]}]}, kind=None)
@example(value={"inputs": [{"datatype": "BYTES", "data": [{}], "name": "text"}]}, kind=None)
@example(value={"data": {"data": {"data": []}}}, kind=None)
def test_any_value(classifier: Predictor, reader: Predictor, value: Any, kind: str | None) -> None:
    for predictor in (classifier, reader):
        check(predictor, value, kind)
        check(predictor, json.dumps(value).encode(), kind)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=60), kind=TYPES)
def test_any_bytes(classifier: Predictor, reader: Predictor, raw: bytes, kind: str | None) -> None:
    for predictor in (classifier, reader):
        check(predictor, raw, kind)
        check(predictor, b'{"text": "a' + raw + b'"}', kind)
