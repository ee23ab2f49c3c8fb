"""Arbitrary bodies: an answer of the task's schema or a client's error, never an internal one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handler.predictor import Predictor
from handler.tasks import TASKS
from tests.unit.handler_fakes import VOCABULARY, PooledLogits, SeveralOutputs, TokenOutputs, predictor

KEYS = st.sampled_from(
    ["text", "text_pair", "question", "context", "top_k", "truncation", "stride", "n_best", "inputs", "parameters",
     "instances", "data", "body", "null_threshold", "max_answer_length", "datatype", "name", "shape", "target", "",
     "query", "texts", "sort", "normalize", "dimensions", "aggregation", "id", "format", "prompt", "prompt_name",
     "input_type", "raw_scores", "return_text", "candidate_labels", "hypothesis_template", "multi_label",
     "sparse_keys", "outputs"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "stride",
            "error",
            "BYTES",
            "the cat [MASK]",
            "sat " * 40,
            "max",
            "\ud800",
            "This is {}.",
            "{0.real}",
            "{:>999}",
            "ids",
            "dense",
            "sparse",
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
TYPES = st.sampled_from([None, "", "application/json", "text/plain", "text/plain; charset=utf-8", "image/png"])
MODELS = {
    "sequence_classification": PooledLogits(3),
    "question_answering": TokenOutputs(2),
    "token_classification": TokenOutputs(1, 4),
    "embedding": PooledLogits(8),
    "rerank": PooledLogits(1),
    "fill_mask": TokenOutputs(1, len(VOCABULARY)),
    "zero_shot_classification": PooledLogits(3),
    "sparse_embedding": PooledLogits(len(VOCABULARY)),
    "multi_vector_embedding": TokenOutputs(1, 4),
    "hybrid_embedding": SeveralOutputs(8),
}


@pytest.fixture(scope="module", params=TASKS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A predictor of every task."""
    return predictor(tmp_path_factory.mktemp(request.param), MODELS[request.param], request.param)


def check(predictor: Predictor, row: Any, kind: str | None) -> None:
    (reply,) = predictor.predict([{"body": row}], [kind])
    text = json.dumps(reply.payload, allow_nan=False)
    text.encode()
    assert reply.status in (200, 400, 413, 422), text
    assert '"internal"' not in text
    assert reply.phrase.isascii()
    for answer in answers(reply.payload):
        assert predictor.task.answer.model_validate(answer).model_dump(exclude_unset=True) == answer


def answers(payload: Any) -> list[dict[str, Any]]:
    """The answers in a reply, whatever protocol it speaks, without the errors."""
    if isinstance(payload, dict) and "outputs" in payload:
        payload = [json.loads(data) for data in payload["outputs"][0]["data"]]
    elif isinstance(payload, dict) and "predictions" in payload:
        payload = payload["predictions"]
    return [answer for answer in (payload if isinstance(payload, list) else [payload]) if "error" not in answer]


@settings(max_examples=150, deadline=None)
@given(value=VALUES, kind=TYPES)
@example(value={"inputs": [{"datatype": "BYTES", "data": ["{"]}]}, kind=None)
@example(value={"inputs": [{"datatype": "BYTES", "data": [{}], "name": "text"}]}, kind=None)
@example(value={"id": "\ud800", "inputs": [{"datatype": "BYTES", "data": ["the cat"]}]}, kind=None)
@example(value={"data": {"data": {"data": []}}}, kind=None)
@example(value=["the cat", {"text": "sat " * 40, "truncation": "stride"}], kind=None)
@example(value={"query": "who", "texts": ["the cat", "sat " * 40], "truncation": "stride"}, kind=None)
@example(value={"question": "who", "context": "the cat sat", "n_best": 3}, kind=None)
@example(value={"text": "the [MASK] sat on [MASK]", "top_k": 1000}, kind=None)
@example(value={"text": "the cat", "candidate_labels": "a mat,, red ,", "multi_label": True}, kind=None)
@example(value={"text": "sat " * 40, "candidate_labels": ["cat " * 40, "a"], "truncation": "stride"}, kind=None)
@example(value={"text": "sat " * 40, "candidate_labels": ["a", "b"], "truncation": "stride"}, kind=None)
@example(value={"text": "the cat", "candidate_labels": ["a"], "hypothesis_template": "{0.__class__}"}, kind=None)
@example(value={"text": "sat " * 40, "outputs": ["sparse", "sparse"], "sparse_keys": "ids", "top_k": 2}, kind=None)
@example(value={"query": "sat " * 40, "texts": [".", "sat " * 40], "truncation": "stride"}, kind=None)
def test_any_value(served: Predictor, value: Any, kind: str | None) -> None:
    check(served, value, kind)
    check(served, json.dumps(value).encode(), kind)


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=60), kind=TYPES)
def test_any_bytes(served: Predictor, raw: bytes, kind: str | None) -> None:
    check(served, raw, kind)
    check(served, b'{"text": "a' + raw + b'"}', kind)


@pytest.mark.parametrize("depth", [10, 500, 960, 990, 1000, 1100, 20_000])
@pytest.mark.parametrize("key", ["data", "inputs", "instances"])
def test_any_depth(served: Predictor, key: str, depth: int) -> None:
    check(served, (f'{{"{key}":' * depth + '"the cat"' + "}" * depth).encode(), None)
    check(served, ("[" * depth + "]" * depth).encode(), None)
    nested: Any = "the cat"
    for _ in range(depth):
        nested = {key: nested}
    check(served, nested, None)
