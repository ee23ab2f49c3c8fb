"""The application: addresses, statuses and the form of errors of every protocol, in this process."""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from tests.unit.handler_fakes import VOCABULARY, TokenOutputs, save_archive
from tests.unit.server_fakes import client
from tests.unit.test_handler_engine import pack

TEXT = "the cat sat on a mat"
CLS, SEP = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]
JSON = {"content-type": "application/json"}


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

    monkeypatch.setattr(models["colours"].engine.task, "finish_all", broken)
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
