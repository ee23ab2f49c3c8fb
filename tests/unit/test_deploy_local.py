"""What `python -m deploy` says of the server of this checkout, and of there being none."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from deploy import __main__ as command
from deploy import local
from deploy.example import curl, example
from deploy.server import PORTS, PortTakenError, Server
from handler.spellings import Task
from tests.unit.handler_fakes import facts, save_tokenizer

KEYS = {"inference": {"key": "secret"}, "management": {"key": "more"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of nothing, where no server runs."""
    monkeypatch.setattr(local, "RUN", tmp_path / "build" / "server")
    monkeypatch.setattr(local, "STORE", tmp_path / "model_store")
    monkeypatch.delenv("PORT", raising=False)
    (tmp_path / "model_store").mkdir()
    (tmp_path / "build" / "server").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["deploy", *arguments])
    monkeypatch.setattr(command, "raise_interrupts", lambda: None)
    return command.main()


def runs(monkeypatch: pytest.MonkeyPatch, started: float = 0.0) -> None:
    process = SimpleNamespace(create_time=lambda: started)
    monkeypatch.setattr(Server, "process", lambda self: process if self.folder == local.RUN else None)


def starts_itself(monkeypatch: pytest.MonkeyPatch, started: float = 0.0) -> None:
    monkeypatch.setattr(local, "_started_here", lambda: SimpleNamespace(create_time=lambda: started))


def archive(path: Path, task: str, **changes: Any) -> Path:
    save_tokenizer(path.with_suffix(".json"))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("archive.json", facts(task, **changes).model_dump_json())
        packed.write(path.with_suffix(".json"), "tokenizer.json")
    return path


@pytest.mark.parametrize("asked", ["token", "predict"])
def test_without_a_server_one_line_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    for stale in (folder, local.RUN):
        (stale / "key_file.json").write_text(json.dumps(KEYS))
    assert run(monkeypatch, asked) == 1
    assert capsys.readouterr() == ("", "deploy: no server of this folder is running; run make serve\n")


def test_the_token_is_the_running_servers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "key_file.json").write_text(json.dumps({"inference": {"key": "here"}}))
    starts_itself(monkeypatch)
    assert run(monkeypatch, "token") == 0
    assert capsys.readouterr().out == "here\n"
    asked = local.running(local.local_server("9380"))
    assert (asked.folder, asked.ports) == (folder, (9380, 9381, 9382))
    runs(monkeypatch)
    assert run(monkeypatch, "token") == 1, "its own file is not there yet"
    assert "has written no token" in capsys.readouterr().err
    (local.RUN / "key_file.json").write_text(json.dumps(KEYS))
    assert run(monkeypatch, "token") == 0
    assert capsys.readouterr().out == "secret\n"
    runs(monkeypatch, started=time.time() + 60)
    assert run(monkeypatch, "token") == 1, "an earlier server's"


def test_stop_says_what_there_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "stop") == 0
    assert capsys.readouterr().out == "no server of this folder was running\n"
    starts_itself(monkeypatch)
    assert run(monkeypatch, "stop") == 0
    assert capsys.readouterr().out.endswith("is ended by torchserve --stop\n")


@pytest.mark.parametrize("port", ["x", "0", "65532", "-1", "8080 ", "99999999999", "²"])
def test_a_port_that_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    monkeypatch.setenv("PORT", port)
    assert run(monkeypatch, "check") == 1
    assert capsys.readouterr().err.startswith("deploy: PORT is a number from 1 to 65531")


def test_ports_are_those_asked_for_or_those_of_the_running_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local.local_server("").ports == local.local_server("8080").ports == PORTS
    assert local.local_server("8080").settings == {}
    server = local.local_server("9380")
    assert server.ports == (9380, 9381, 9382)
    assert server.settings == {"grpc_inference_port": "9383", "grpc_management_port": "9384"}
    server._write_config()
    runs(monkeypatch)
    for asked in ("", "9999"):
        found = local.local_server(asked)
        assert (found.ports, found.settings) == (server.ports, server.settings)
    (local.RUN / "config.properties").unlink()
    assert local.local_server("").ports == PORTS


def test_a_taken_port_is_told_with_a_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Server, models: object) -> None:
        raise PortTakenError(8080)

    monkeypatch.setattr(Server, "check", refuse)
    monkeypatch.setattr(command.ports, "suggestion", lambda port: port + 1000)
    for asked in ("serve", "check", "demo"):
        assert run(monkeypatch, asked) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == (
            "deploy: port 8080 is taken by another process; stop it, or set PORT=9080 (9081 to 9084 are used, too)\n"
        )


def test_a_demo_stops_no_server_that_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch)
    (local.STORE / "a.mar").touch()
    monkeypatch.setattr(Server, "stop", lambda *_: pytest.fail("stopped"))
    assert run(monkeypatch, "demo", "a") == 1


@pytest.mark.parametrize("task", get_args(Task))
def test_every_task_has_a_request_to_show(tmp_path: Path, task: str) -> None:
    changes: dict[str, Any] = {"mask_id": 4} if task == "fill_mask" else {}
    request = example(archive(tmp_path / "a.mar", task, **changes))
    assert request
    assert all(request.values())
    assert ("[MASK]" in request.get("text", "")) == (task == "fill_mask")
    words = shlex.split(curl("http://here", "a", request, None))
    assert words[1] == "http://here/predictions/a"
    assert json.loads(words[words.index("-d") + 1]) == request


def test_anothers_archive_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.mar").write_bytes(b"no zip")
    assert example(tmp_path / "a.mar") is None
    assert example(tmp_path / "b.mar") is None
    assert curl("http://here", "a", None, None).endswith("-T FILE")


def test_what_is_shown_is_ready_to_be_pasted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive(local.STORE / "mine.mar", "embedding")
    command._show(Server(local.RUN, local.STORE, ports=(9380, 9381, 9382)), ["mine", "document_qa"])
    first, token, mine, sample = capsys.readouterr().out.splitlines()
    assert first == "ready; for example:"
    assert token == "  TOKEN=$(.venv/bin/python -m deploy token)"
    assert mine.startswith("  curl http://127.0.0.1:9380/predictions/mine ")
    assert mine.endswith("""-d '{"text": "The town built a lighthouse."}'""")
    assert sample.endswith("-T setup_configs/sample_inputs/document_qa/document.json")


class Front(BaseHTTPRequestHandler):
    """Serves ``mine``, at both addresses."""

    def do_GET(self) -> None:
        self._answer({"models": [{"modelName": "mine"}]}, "more")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({"asked": body, "type": self.headers["Content-Type"]}, "secret")

    def _answer(self, body: dict[str, Any], key: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {key}" else 400)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def front(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    Server(local.RUN, local.STORE, ports=(port, port, port))._write_config()
    (local.RUN / "key_file.json").write_text(json.dumps(KEYS))
    runs(monkeypatch)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("front")
def test_what_is_served_is_asked_by_its_task(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive(local.STORE / "mine.mar", "rerank")
    assert run(monkeypatch, "predict") == 0
    asked, answer = capsys.readouterr().out.splitlines()
    request = example(local.STORE / "mine.mar")
    assert asked == f"mine <- {json.dumps(request)}: 200"
    assert json.loads(answer) == {"asked": request, "type": "application/json"}
    assert run(monkeypatch, "predict", "other") == 1
    assert capsys.readouterr().err == "deploy: other: not served; there are: mine\n"
    os.remove(local.STORE / "mine.mar")
    assert run(monkeypatch, "predict") == 0
    assert capsys.readouterr().out == "mine: no archive in model_store/ says what it takes; ask it yourself\n"
