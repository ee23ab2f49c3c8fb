"""The client's retries and errors, against a small server of the test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from handler.client import Client, ServerError


class Scripted(BaseHTTPRequestHandler):
    """Answers with the next (status, body) of the script and keeps what it was sent."""

    script: list[tuple[int, str]]
    seen: list[tuple[str, str | None, object]]

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers["Authorization"], sent))
        status, body = self.script.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Scripted.script, Scripted.seen = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_busy_server_is_asked_again(url: str, tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text('{"inference": {"key": "secret"}}')
    Scripted.script = [(503, "busy"), (429, "busy"), (200, '{"label": "x"}')]
    with Client(url, key_file=tmp_path / "key_file.json", wait=0.001) as client:
        assert client.predict("model", "text", top_k=2) == {"label": "x"}
    assert (
        Scripted.seen == [("/predictions/model", "Bearer secret", {"inputs": "text", "parameters": {"top_k": 2}})] * 3
    )


def test_patience_ends(url: str) -> None:
    Scripted.script = [(503, "busy")] * 3
    with Client(url, retries=2, wait=0.001) as client, pytest.raises(ServerError) as caught:
        client.predict("model", "text")
    assert caught.value.status == 503
    assert Scripted.script == []


def test_a_clients_error_is_not_repeated(url: str) -> None:
    Scripted.script = [(422, '{"error": {"type": "invalid_request", "message": "no", "field": "text"}}')]
    with Client(url, wait=0.001) as client, pytest.raises(ServerError) as caught:
        client.predict("model", {"txt": 1})
    assert (caught.value.type, caught.value.field) == ("invalid_request", "text")


def test_long_lists_are_cut_and_joined(url: str) -> None:
    Scripted.script = [(200, "[1, 2]"), (200, "[3]")]
    with Client(url) as client:
        assert list(client.predict_many("model", ["a", "b", "c"], size=2)) == [1, 2, 3]
    assert [sent for _, _, sent in Scripted.seen] == [["a", "b"], ["c"]]
