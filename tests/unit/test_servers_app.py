"""The application: addresses, statuses and the form of errors of every protocol, in this process."""

from __future__ import annotations

import base64
import dataclasses
import fcntl
import gzip
import importlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from handler.canary import close
from handler.config import ConfigError
from handler.draining import BUSY, STOP, Drain
from handler.predictor import Predictor
from handler.servers import running as running_module
from handler.servers.http import shares
from handler.servers.keys import read_keys
from handler.servers.model import Card
from handler.servers.routes import health, routes
from handler.servers.running import Running
from tests.unit.handler_fakes import MAX_LENGTH, VOCABULARY, TokenOutputs, save_archive
from tests.unit.server_fakes import client, predictors
from tests.unit.test_handler_engine import pack

TEXT = "the cat sat on a mat"
CLS, SEP = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    return predictors(tmp_path_factory.mktemp("models"), limits={"max_inputs": 8, "max_body_bytes": 20_000})


@pytest.fixture(scope="module")
def app(models: dict[str, Predictor]) -> Iterator[TestClient]:
    with client(models) as opened:
        yield opened


def vector(models: dict[str, Predictor], text: str, **options: Any) -> list[float]:
    return models["vectors"]({"text": text, **options})["embedding"]


def embeddings(app: TestClient, **body: Any) -> Any:
    return app.post("/v1/embeddings", json={"model": "vectors", **body})


# What TorchServe's addresses take and give.


BODIES = [
    (b"the cat", "text/plain"),
    (b'{"text": "the cat", "top_k": 2}', "application/json"),
    (b'["the cat", "", {"text": "a mat"}, 7]', "application/json"),
    (b'{"inputs": ["the cat"], "parameters": {"top_k": 3}}', ""),
    (b'{"instances": ["the cat"]}', "application/json"),
    (b"text=the+cat", "application/x-www-form-urlencoded"),
    (b"{'text': 'the cat'}", "application/json"),
    (b'{"text": "the cat", "unknown": 1}', "application/json"),
    (b"", "application/json"),
    (b"[]", "application/json"),
    (b"\xff\xfe", "application/json"),
    (b'{"text": "' + b"one " * 60 + b'", "truncation": "error"}', "application/json"),
    (b'["one"' + b', "one"' * 9 + b"]", "application/json"),
    (b"text", "text/plain; charset=klingon"),
]


@pytest.mark.parametrize(("body", "kind"), BODIES, ids=range(len(BODIES)))
def test_own_bodies_get_what_the_predictor_answers(
    app: TestClient, models: dict[str, Predictor], body: bytes, kind: str
) -> None:
    headers = {"content-type": kind, "content-length": str(len(body))}
    (expected,) = models["colours"].predict([{"body": body}], [kind], headers=[headers])
    reply = app.post("/predictions/colours", content=body, headers={"content-type": kind})
    assert reply.status_code == expected.status
    assert close(reply.json(), expected.payload, 1e-6)


def test_the_other_way_to_write_an_address(app: TestClient) -> None:
    assert app.put("/predictions/colours/1.0", json=TEXT).status_code == 200
    refused = app.put("/predictions/colours/2.0", json=TEXT)
    assert refused.status_code == 404
    assert refused.json()["error"]["type"] == "version_not_found"


def test_a_form_in_parts(app: TestClient, models: dict[str, Predictor]) -> None:
    fields = {"question": (None, "where is the cat"), "context": (None, TEXT)}
    answer = app.post("/predictions/reader", files=fields)
    assert answer.status_code == 200, answer.text
    assert close(answer.json(), models["reader"]({"question": "where is the cat", "context": TEXT}), 1e-6)
    file = app.post("/predictions/colours", files={"file": ("text.json", b'{"text": "the cat"}', "application/json")})
    assert close(file.json(), models["colours"]({"text": "the cat"}), 1e-6)
    broken = app.post("/predictions/colours", content=b"--x\r\n", headers={"content-type": "multipart/form-data"})
    assert (broken.status_code, broken.json()["error"]["type"]) == (415, "unsupported_media")


def test_a_compressed_body(app: TestClient) -> None:
    packed = gzip.compress(json.dumps({"model": "vectors", "input": TEXT}).encode())
    assert app.post("/v1/embeddings", content=packed, headers={"content-encoding": "gzip"}).status_code == 200
    bomb = gzip.compress(b" " * 100_000)
    for path, status in (("/v1/embeddings", 413), ("/predictions/colours", 413), ("/v2/models/colours/infer", 413)):
        assert app.post(path, content=bomb, headers={"content-encoding": "gzip"}).status_code == status
    broken = app.post("/v1/embeddings", content=b"x", headers={"content-encoding": "gzip"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_encoding")


def test_a_body_larger_than_the_config_allows(app: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    for content in (b"x" * 20_001, parts()):
        reply = app.post("/predictions/colours", content=content)
        assert (reply.status_code, reply.json()["error"]["type"]) == (413, "too_large")


def test_an_explanation_says_what_it_needs(app: TestClient) -> None:
    reply = app.post("/explanations/colours", json={"text": TEXT})
    assert reply.status_code == 422
    assert reply.json()["error"]["type"] == "unsupported"


def test_what_is_served(app: TestClient) -> None:
    assert {model["name"]: model["task"] for model in app.get("/models").json()["models"]} == {
        "colours": "sequence_classification", "vectors": "embedding", "ranks": "rerank",
        "reader": "question_answering",
    }  # fmt: skip
    described = app.get("/models/colours").json()
    assert described["canary"]["healthy"] is True
    assert app.get("/models/none").status_code == 404


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


# The server itself.


def test_addresses_that_are_none(app: TestClient) -> None:
    assert app.get("/nothing").json()["error"]["type"] == "not_found"
    assert app.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert app.get("/v2/nothing").json()["error"].startswith("not found")
    refused = app.get("/v1/embeddings")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_keys(models: dict[str, Predictor]) -> None:
    with client(models, keys=("secret", "other")) as guarded:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            reply = guarded.post("/v1/embeddings", json={"model": "vectors", "input": TEXT}, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert guarded.get("/v1/models").status_code == 401
        assert guarded.get("/v2/health/ready").status_code == 200
        right = {"authorization": "Bearer other"}
        assert guarded.post("/predictions/colours", json=TEXT, headers=right).status_code == 200


def test_a_stopping_server_refuses_and_says_so(models: dict[str, Predictor], tmp_path: Path) -> None:
    with client(models, running=Running(Drain(tmp_path))) as app:
        assert app.get("/v2/health/ready").json() == {"ready": True}
        assert app.post("/predictions/colours", json=TEXT).status_code == 200
        (tmp_path / STOP).touch()
        refused = app.post("/predictions/colours", json=TEXT)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert app.get("/v2/health/ready").status_code == 503
        assert app.get("/ping").json() == {"status": "Unhealthy"}
        assert app.get("/v2/health/live").status_code == 200


def test_whoever_drains_waits_for_what_runs(tmp_path: Path) -> None:
    running = Running(Drain(tmp_path))
    with running.request() as refused:
        assert not refused
        with running.request(), (tmp_path / BUSY).open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert running_module.close(tmp_path, 0.1) is False
        with running.request() as refused:
            assert refused
    assert running_module.close(tmp_path, 5) is True


def test_figures(app: TestClient) -> None:
    app.post("/predictions/colours", json={"text": ""})
    app.post("/predictions/colours", json=["", TEXT])
    text = app.get("/metrics").text
    for line in (
        r'efft_replies_total{protocol="own",status="400",worker=',
        r'efft_stage_seconds_count{model="colours",stage="run",worker=',
        r'efft_request_errors_total{error="empty",model="colours",worker=',
        r'efft_tokens_total{model="colours",worker=',
        r'efft_calls{model="colours",worker=',
    ):
        assert line in text or line.replace('model="colours",worker=', "") in text, line


def test_a_fault_shows_an_id_and_no_trace(
    models: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("the client's text")

    monkeypatch.setattr(models["colours"].engine.task, "finish", broken)
    with client(models) as app:
        reply = app.post("/predictions/colours", json=TEXT)
    assert reply.status_code == 500
    assert "id in the server's log" in reply.json()["error"]["message"]
    assert "the client's text" not in reply.text + caplog.text


# The commands and their page.


def test_the_page_lists_every_address() -> None:
    table = (
        (Path(__file__).parents[2] / "docs" / "servers.md").read_text().partition("| address |")[2].partition("\n\n")[0]
    )
    listed = {
        (method, path.replace("NAME", "{name}"))
        for method, cell in re.findall(r"^\| `(\w+) (/.*?) \| ", table, re.MULTILINE)
        for path in re.findall(r"/[^`, ]*", cell)
    }
    nobody: Any = None
    served = {
        (method, route.path)
        for route in [*routes(nobody, nobody).routes, *health(nobody, nobody, nobody).routes]
        for method in route.methods - {"HEAD", "PUT"}
        if "{version}" not in route.path
    }
    assert listed == served


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.mar"], "there is no archive 'none.mar'"),
        (["a=x.mar", "a=y.mar"], "two archives are called a"),
        ([__file__], "test_servers_app.py cannot be read"),
        (["a b=x.mar"], "'a b' is no model's name"),
        (["x.mar", "--key-file", "none.txt"], "there is no archive 'x.mar'"),
    ],
)
@pytest.mark.parametrize("module", ["http", "ray_serve"])
def test_what_cannot_be_served_is_said_in_one_line(
    module: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if module == "ray_serve":
        pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
    command = importlib.import_module(f"handler.servers.{module}")
    assert command.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{module}: ")
    assert says in line


def test_keys_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# of the shop\none\n\n two \n")
    assert read_keys(file) == ("one", "two")
    monkeypatch.setenv("EFFT_API_KEY", "three")
    assert read_keys(file) == ("three", "one", "two")
    assert read_keys(None) == ("three",)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none.txt")


def test_processes_and_threads_are_as_tuned_unless_told(tmp_path: Path) -> None:
    assert shares(tmp_path, 1, 3) == (1, {"maxWorkers": 1, "handler": {"threads": 3, "pin": False}})
    (tmp_path / "model-config.yaml").write_text("maxWorkers: 2\nhandler: {threads: 1, pin: true}\n")
    assert shares(tmp_path, None, None) == (2, {"maxWorkers": 2, "handler": {"threads": 1, "pin": True}})
    with pytest.raises(ConfigError, match="at least 1"):
        shares(tmp_path, 0, None)


def test_a_card_is_read_without_the_model(tmp_path: Path) -> None:
    files = save_archive(tmp_path / "files", TokenOutputs(2), "question_answering", {"stride": 4})
    packed = Card.read("reader", pack(files, tmp_path / "reader.mar"))
    assert packed == dataclasses.replace(Card.read("reader", files), created=packed.created)
    assert (packed.task, packed.fields) == ("question_answering", ("question", "context"))
