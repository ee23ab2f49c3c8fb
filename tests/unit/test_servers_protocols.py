"""OpenAI's, Cohere's, Jina's and KServe's protocols: what they give, and what they refuse in which words."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from handler.canary import close
from handler.predictor import Predictor
from tests.unit.handler_fakes import MAX_LENGTH, VOCABULARY

TEXT = "the cat sat on a mat"
CLS, SEP = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]
JSON = {"content-type": "application/json"}


def vector(models: dict[str, Predictor], text: str, **options: Any) -> list[float]:
    return models["vectors"]({"text": text, **options})["embedding"]


def embeddings(app: TestClient, **body: Any) -> Any:
    return app.post("/v1/embeddings", json={"model": "vectors", **body})


# OpenAI's embeddings.


def test_an_embedding(app: TestClient, models: dict[str, Predictor]) -> None:
    body = embeddings(app, input=TEXT).json()
    assert (body["object"], body["model"]) == ("list", "vectors")
    (item,) = body["data"]
    assert (item["object"], item["index"]) == ("embedding", 0)
    assert item["embedding"] == pytest.approx(vector(models, TEXT), abs=1e-6)
    assert body["usage"] == {"prompt_tokens": 8, "total_tokens": 8}


def test_base64_holds_the_same_numbers(app: TestClient) -> None:
    texts = [TEXT, "red", "blue green"]
    floats = [item["embedding"] for item in embeddings(app, input=texts).json()["data"]]
    packed = embeddings(app, input=texts, encoding_format="base64").json()["data"]
    read = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4").tolist() for item in packed]
    assert [item["index"] for item in packed] == [0, 1, 2]
    np.testing.assert_allclose(read, floats, rtol=1e-6)


def test_options_of_an_embedding(app: TestClient, models: dict[str, Predictor]) -> None:
    cut = embeddings(app, input=TEXT, dimensions=3, user="someone", normalize=True).json()["data"][0]["embedding"]
    assert cut == pytest.approx(vector(models, TEXT, dimensions=3, normalize=True), abs=1e-6)


def test_token_ids_of_this_model_are_its_text(app: TestClient, models: dict[str, Predictor]) -> None:
    ids = models["vectors"].task.tokenizer.backend.encode(TEXT).ids
    one = embeddings(app, input=ids).json()
    assert one["data"][0]["embedding"] == pytest.approx(vector(models, TEXT), abs=1e-6)
    two = embeddings(app, input=[ids, [CLS, VOCABULARY["red"], SEP]]).json()
    assert two["data"][1]["embedding"] == pytest.approx(vector(models, "red"), abs=1e-6)
    assert two["usage"]["total_tokens"] == len(ids) + 3
    long = [CLS, *[VOCABULARY["one"]] * 60, SEP]
    cut = embeddings(app, input=long).json()
    assert cut["data"][0]["embedding"] == pytest.approx(vector(models, "one " * 60), abs=1e-6)
    assert cut["usage"]["total_tokens"] == MAX_LENGTH


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": ""}, 400, "empty", "input"),
        ({"input": []}, 400, "empty", "input"),
        ({"input": TEXT, "adapter": "other"}, 400, "invalid_request", "adapter"),
        ({"input": [CLS, SEP], "adapter": "other"}, 400, "invalid_request", "adapter"),
        ({"input": [TEXT, " "]}, 400, "empty", "input"),
        ({"input": 7}, 400, "invalid_request", "input"),
        ({"input": [TEXT, 7]}, 400, "invalid_request", "input"),
        ({"input": {"text": TEXT}}, 400, "invalid_request", "input"),
        ({}, 400, "invalid_request", "input"),
        ({"input": TEXT, "dimensions": 0}, 400, "invalid_request", "dimensions"),
        ({"input": TEXT, "dimensions": 9}, 400, "invalid_request", "dimensions"),
        ({"input": TEXT, "encoding_format": "hex"}, 400, "invalid_request", "encoding_format"),
        ({"input": TEXT, "temperature": 1}, 400, "invalid_request", None),
        ({"input": TEXT, "prompt_name": "none"}, 400, "invalid_request", "prompt_name"),
        ({"input": "one " * 60, "truncation": "error"}, 400, "too_long", None),
        ({"input": [TEXT] * 9}, 413, "too_many", "input"),
        ({"input": [9906, 1917]}, 400, "invalid_request", "input"),
        ({"input": [[CLS, SEP]]}, 400, "invalid_request", "input"),
        ({"input": [CLS, 10**6, SEP]}, 400, "invalid_request", "input"),
        ({"input": [CLS, -1, SEP]}, 400, "invalid_request", "input"),
        ({"input": [CLS, *[9] * 60, SEP], "truncation": "error"}, 400, "too_long", "input"),
        ({"input": [CLS, 9, SEP], "prompt": "the "}, 400, "unsupported", "prompt"),
        ({"input": TEXT, "model": "colours"}, 400, "unsupported", "model"),
        ({"input": TEXT, "model": "gpt"}, 404, "model_not_found", "model"),
        ({"input": TEXT, "model": 7}, 400, "invalid_request", "model"),
    ],
)
def test_what_an_embedding_is_refused_for(
    app: TestClient, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    reply = embeddings(app, **body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]


def test_the_bad_one_of_a_list_is_named(app: TestClient) -> None:
    message = embeddings(app, input=[TEXT, "one " * 60], truncation="error").json()["error"]["message"]
    assert message.startswith("input 1: 62 tokens")


def test_a_body_that_is_no_object(app: TestClient) -> None:
    for content, code in ((b"{", "invalid_json"), (b"[]", "invalid_request"), (b"", "empty"), (b"NaN", "invalid_json")):
        reply = app.post("/v1/embeddings", content=content, headers=JSON)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)


def test_the_list_of_models(app: TestClient) -> None:
    listed = app.get("/v1/models").json()
    assert listed["object"] == "list"
    one = app.get("/v1/models/vectors").json()
    assert one in listed["data"]
    assert (one["id"], one["object"], one["created"]) == ("vectors", "model", 1_700_000_000)
    assert one["ready"] is True  # KServe's version 1 asks here
    assert app.get("/v1/models/none").json()["error"]["code"] == "model_not_found"


# Cohere's and Jina's rerank.


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_a_rerank(app: TestClient, models: dict[str, Predictor], path: str) -> None:
    documents = [TEXT, {"text": "the red mat"}, "blue"]
    body = {"model": "ranks", "query": "where is it", "documents": documents, "top_n": 2, "return_documents": True}
    reply = app.post(path, json=body).json()
    texts = [TEXT, "the red mat", "blue"]
    expected = models["ranks"]({"query": "where is it", "texts": texts})["results"][:2]
    assert [(r["index"], r["relevance_score"]) for r in reply["results"]] == [
        (r["index"], pytest.approx(r["score"], abs=1e-6)) for r in expected
    ]
    assert [r["document"] for r in reply["results"]] == [{"text": texts[r["index"]]} for r in expected]
    assert reply["model"] == "ranks"
    assert reply["meta"]["billed_units"] == {"search_units": 1}
    assert reply["usage"]["total_tokens"] > 0


def test_a_rerank_without_a_model_and_by_fields(app: TestClient) -> None:
    documents = [{"title": "the cat", "body": "on a mat"}, {"title": "the red mat", "body": 3}]
    asked = {"query": "who", "documents": documents, "rank_fields": ["title", "body"]}
    scores = {r["index"]: r for r in app.post("/rerank", json=asked).json()["results"]}
    joined = {"query": "who", "documents": ["the cat\non a mat", "the red mat"]}
    plain = {r["index"]: r for r in app.post("/rerank", json=joined).json()["results"]}
    assert scores == {index: pytest.approx(result, abs=1e-6) for index, result in plain.items()}
    assert "document" not in scores[0]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"documents": []}, 400, "documents: "),
        ({"documents": [TEXT, ""]}, 400, "documents"),
        ({"documents": [TEXT, 7]}, 422, "documents.1: "),
        ({"documents": [{"title": "x"}]}, 422, "documents.0: "),
        ({"documents": [TEXT] * 9}, 413, "documents: 9 texts"),
        ({"documents": None}, 422, "documents: "),
        ({"query": ""}, 400, "query: "),
        ({"query": None}, 422, "query: "),
        ({"top_n": 0}, 422, "top_n: "),
        ({"nonsense": 1}, 422, "a key is unknown"),
        ({"model": "vectors"}, 422, "model: this model's task is embedding, not rerank"),
        ({"model": "none"}, 404, "model: there is no model"),
    ],
)
def test_what_a_rerank_is_refused_for(app: TestClient, change: dict[str, Any], status: int, says: str) -> None:
    reply = app.post("/v2/rerank", json={"model": "ranks", "query": "who", "documents": [TEXT], **change})
    assert reply.status_code == status, reply.text
    error = reply.json()
    assert error["message"].startswith(says)
    assert error["detail"] == error["message"]
    assert error["id"]


# KServe.


def tensors(**columns: list[str]) -> list[dict[str, Any]]:
    return [{"name": n, "shape": [len(d)], "datatype": "BYTES", "data": d} for n, d in columns.items()]


def test_infer(app: TestClient, models: dict[str, Predictor]) -> None:
    asked = {"id": "seven", "inputs": tensors(text=[TEXT, "", "red"]), "parameters": {"top_k": 2}}
    reply = app.post("/v2/models/colours/versions/1.0/infer", json=asked).json()
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("colours", "1.0", "seven")
    (output,) = reply["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("predictions", "BYTES", [3])
    first, second, third = map(json.loads, output["data"])
    assert close(first, models["colours"]({"text": TEXT, "top_k": 2}), 1e-6)
    assert second["error"]["type"] == "empty"
    assert third["labels"]


def test_infer_with_columns(app: TestClient, models: dict[str, Predictor]) -> None:
    asked = {"inputs": tensors(question=["where is it"], context=[TEXT])}
    (output,) = app.post("/v2/models/reader/infer", json=asked).json()["outputs"]
    expected = models["reader"]({"question": "where is it", "context": TEXT})
    assert close(json.loads(output["data"][0]), expected, 1e-6)


def binary(texts: list[str], *, wanted: bool = True, size: int | None = None) -> tuple[bytes, dict[str, str]]:
    raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    length = len(raw) if size is None else size
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "parameters": {"binary_data_size": length}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": wanted}}).encode()
    return head + raw, {"inference-header-content-length": str(len(head))}


def test_binary_tensors_as_tritons_client_sends_them(app: TestClient, models: dict[str, Predictor]) -> None:
    content, headers = binary([TEXT, "rød", "red"])
    reply = app.post("/v2/models/colours/infer", content=content, headers=headers)
    length = int(reply.headers["inference-header-content-length"])
    head, raw = json.loads(reply.content[:length]), reply.content[length:]
    assert head["outputs"][0]["parameters"]["binary_data_size"] == len(raw)
    answers = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        answers.append(json.loads(raw[4 : 4 + size]))
        raw = raw[4 + size :]
    assert close(answers, models["colours"]([TEXT, "rød", "red"]), 1e-6)
    content, headers = binary([TEXT], wanted=False)
    plain = app.post("/v2/models/colours/infer", content=content, headers=headers).json()
    assert json.loads(plain["outputs"][0]["data"][0])["label"] in ("red", "green", "blue")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda body, headers: (body[:-1], headers), 400),
        (lambda body, headers: (body + b"x", headers), 400),
        (lambda body, headers: (body, {"inference-header-content-length": "99999"}), 400),
        (lambda body, headers: (body, {"inference-header-content-length": "-1"}), 400),
        (lambda body, headers: (body, {"inference-header-content-length": "7"}), 400),
        (lambda body, headers: binary([TEXT], size=-3), 400),
        (lambda body, headers: (body[:-3] + b"\xff\xff\xff", headers), 400),
    ],
)
def test_binary_tensors_that_are_none(app: TestClient, change: Any, status: int) -> None:
    content, headers = change(*binary([TEXT]))
    reply = app.post("/v2/models/colours/infer", content=content, headers=headers)
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"inputs": tensors(text=[""])}, 400),
        ({"inputs": []}, 400),
        ({"inputs": [TEXT]}, 400),
        ({}, 400),
        ({"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]}]}, 400),
        ({"inputs": tensors(text=[TEXT]), "outputs": [{"name": "logits"}]}, 400),
        ({"inputs": tensors(text=[TEXT]), "parameters": []}, 400),
        ({"inputs": tensors(text=[TEXT] * 9)}, 413),
    ],
)
def test_what_an_inference_is_refused_for(app: TestClient, body: dict[str, Any], status: int) -> None:
    reply = app.post("/v2/models/colours/infer", json=body)
    assert reply.status_code == status, reply.text
    assert isinstance(reply.json()["error"], str)
    assert app.post("/v2/models/none/infer", json=body).status_code == 404


def test_version_1(app: TestClient) -> None:
    reply = app.post("/v1/models/colours:predict", json={"instances": [TEXT, {"text": ""}]})
    first, second = reply.json()["predictions"]
    assert first["label"]
    assert second["error"]["type"] == "empty"
    assert app.post("/v1/models/colours:predict", json={"inputs": [TEXT]}).status_code == 400
    assert app.post("/v1/models/colours:predict", json={"instances": [""]}).json() == {"error": "text: text is empty"}
    assert app.post("/v1/models/none:predict", json={"instances": [TEXT]}).status_code == 404


def test_what_kserve_asks_of_models(app: TestClient) -> None:
    assert app.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    described = app.get("/v2/models/reader").json()
    assert [tensor["name"] for tensor in described["inputs"]] == ["question", "context"]
    assert described == app.get("/v2/models/reader/versions/1").json()
    assert app.get("/v2/models/reader/versions/3").status_code == 404
    assert app.get("/v2/models/reader/ready").json() == {"name": "reader", "ready": True}
    assert app.get("/v2/models/none/ready").status_code == 404
    assert app.get("/v2/models/none").json()["error"].startswith("model: there is no model")
