"""Vectors in other forms than lists of fp32 numbers: smaller types, base64, raw bytes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from handler.engine import Engine
from handler.errors import RequestError
from handler.predictor import Predictor
from handler.service import EncoderService
from tests.unit.handler_fakes import PooledLogits, predictor, save_archive
from tests.unit.test_handler_service import context

TEXTS = ["the cat sat", "who", "on a red mat it is"]
WIDTH = 16
TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.int8, "ubinary": np.uint8}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("embedder"), PooledLogits(WIDTH), "embedding", pooling="mean")


@pytest.fixture(scope="module")
def vectors(embedder: Predictor) -> np.ndarray:
    return np.array([answer["embedding"] for answer in embedder(TEXTS)], dtype=np.float32)


def ask(embedder: Predictor, **parameters: Any) -> Any:
    return embedder({"inputs": TEXTS, "parameters": parameters})


@pytest.mark.parametrize("precision", TYPES)
def test_base64_holds_the_same_numbers_as_the_list(embedder: Predictor, precision: str) -> None:
    listed = ask(embedder, precision=precision)
    packed = ask(embedder, precision=precision, encoding_format="base64")
    for one, other in zip(listed, packed, strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"]), dtype=TYPES[precision])
        assert np.array_equal(decoded, np.array(one["embedding"], dtype=TYPES[precision]))
        assert one.get("scale") == other.get("scale")


def test_smaller_types_are_near_the_vector(embedder: Predictor, vectors: np.ndarray) -> None:
    half = np.array([answer["embedding"] for answer in ask(embedder, precision="float16")])
    assert np.allclose(half, vectors, rtol=1e-3, atol=1e-4)
    for answer, vector in zip(ask(embedder, precision="int8"), vectors, strict=True):
        assert np.allclose(np.array(answer["embedding"]) * answer["scale"], vector, atol=answer["scale"] / 2 + 1e-6)
        assert max(map(abs, answer["embedding"])) == 127


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_are_packed_as_sentence_transformers_does(
    embedder: Predictor, vectors: np.ndarray, precision: str
) -> None:
    found = np.array([answer["embedding"] for answer in ask(embedder, precision=precision)])
    assert np.array_equal(found, quantize_embeddings(vectors, precision=precision))


@pytest.mark.parametrize("precision", TYPES)
def test_raw_bytes_are_one_array(embedder: Predictor, precision: str) -> None:
    (reply,) = embedder.predict([{"body": {"inputs": TEXTS, "parameters": {"format": "raw", "precision": precision}}}])
    width = WIDTH // 8 if "binary" in precision else WIDTH
    assert reply.content_type == f"application/octet-stream; dtype={np.dtype(TYPES[precision])}; shape=3x{width}"
    found = np.frombuffer(reply.payload, dtype=TYPES[precision]).reshape(3, width)
    listed = [answer["embedding"] for answer in ask(embedder, precision=precision)]
    assert np.array_equal(found, np.array(listed, dtype=TYPES[precision]))


@pytest.mark.parametrize(
    ("body", "type"),
    [
        ({"inputs": ["the cat", ""], "parameters": {"format": "raw"}}, "empty"),
        ({"inputs": ["a", {"text": "b", "precision": "int8"}], "parameters": {"format": "raw"}}, "invalid_request"),
        ({"text": "a", "precision": "fp64"}, "invalid_request"),
        ({"text": "a", "encoding_format": "hex"}, "invalid_request"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(embedder: Predictor, body: Any, type: str) -> None:
    (reply,) = embedder.predict([{"body": body}])
    assert reply.payload["error"]["type"] == type
    assert "\n" not in reply.payload["error"]["message"]


def test_other_tasks_have_no_raw_answers(classifier: Predictor) -> None:
    (reply,) = classifier.predict([{"body": {"inputs": "the cat", "parameters": {"format": "raw"}}}])
    assert (reply.status, reply.payload["error"]["type"]) == (422, "unsupported")


def test_over_the_wire(tmp_path: Path) -> None:
    own = EncoderService()
    folder = save_archive(tmp_path, PooledLogits(WIDTH), "embedding", {})
    own.initialize(context(folder, 0))
    request = context(folder, 3)
    parameters = {"format": "raw", "precision": "float16"}
    rows = [{"body": {"text": TEXTS[0]}}, {"body": {"inputs": TEXTS, "parameters": parameters}}, {"body": TEXTS}]
    single, raw, several = own.handle(rows, request)
    assert request.get_response_content_type(1) == f"application/octet-stream; dtype=float16; shape=3x{WIDTH}"
    assert len(raw) == 2 * 3 * WIDTH
    assert json.loads(several)[0] == json.loads(single)
    vector = np.array(json.loads(single)["embedding"])
    assert np.allclose(vector, np.frombuffer(raw, np.float16)[:WIDTH], atol=2e-3)


def test_a_list_of_texts_is_one_pass(tmp_path: Path) -> None:
    engine = Engine.open(save_archive(tmp_path, PooledLogits(4), "embedding", {"max_batch_tokens": 16_384}), threads=1)
    engine.answer([f"the cat sat on {number}" for number in range(128)])
    assert engine.metrics.totals["passes"] == 1


def test_columns_hold_numbers_whatever_the_answer_would_look_like(tmp_path: Path) -> None:
    engine = Engine.open(save_archive(tmp_path, PooledLogits(4), "embedding", {}), threads=1)
    requests: list[Any] = [{"text": "a", "encoding_format": "base64"}, {"text": "a"}, {"text": ""}]
    columns = engine.columns(requests)
    assert columns["embedding"].dtype == np.float32
    assert np.array_equal(columns["embedding"][0], columns["embedding"][1])
    first, second, third = engine.answer(requests)
    assert base64.b64decode(first.embedding) == np.array(second.embedding, dtype="<f4").tobytes()
    assert isinstance(third, RequestError)
