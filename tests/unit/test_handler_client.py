"""The client's retries and errors, against a small server of the test's own."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import pytest
import requests

from handler.client import Client, KeyFileMissing, ServerError, ServerUnreachable


class Scripted(BaseHTTPRequestHandler):
    """Answers with the next (status, body, headers...) of the script and keeps what it was sent.

    A status "reset" or "silent" gives no answer; among the headers "cut" ends the body before its length.
    """

    script: list[tuple[Any, ...]]
    seen: list[tuple[str, str | None, object]]
    renewed: list[str]
    key_file: Path

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers["Authorization"], sent))
        status, body, *headers = self.script.pop(0)
        if status == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if status == "silent":
            time.sleep(float(body))
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + (100 if "cut" in headers else 0)))
        for name, value in (own for own in headers if own != "cut"):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())
        if "cut" in headers:
            self.close_connection = True

    def do_GET(self) -> None:
        """As TorchServe renews a token: a new key in the file, an empty answer."""
        self.seen.append((self.path, self.headers["Authorization"], None))
        if self.renewed:
            keys = json.loads(self.key_file.read_text())
            self.key_file.write_text(json.dumps({**keys, "inference": {"key": self.renewed.pop(0)}}))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Scripted.script, Scripted.seen, Scripted.renewed = [], [], []
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


DIED = '{"code": %d, "type": "InternalServerException", "message": "Worker died."}'
DROPPED: list[tuple[Any, ...]] = [
    (500, DIED % 500),
    (507, DIED % 507),
    (502, "<html>"),
    (504, ""),
    (200, '{"label": ', "cut"),
    ("reset", ""),
]


@pytest.mark.parametrize("dropped", DROPPED, ids=[f"{one[0]}" for one in DROPPED])
def test_a_request_that_was_dropped_is_sent_again_until_it_is_answered(url: str, dropped: tuple[Any, ...]) -> None:
    Scripted.script = [dropped, dropped, (200, '{"label": "x"}'), (200, "{}")]
    with Client(url, wait=0.001) as client:
        assert client.predict("model", "text") == {"label": "x"}
    assert len(Scripted.seen) == 3


ANSWERED: list[tuple[int, str]] = [
    (500, '{"error": {"type": "internal", "message": "internal error; its id in the log is 1", "field": null}}'),
    (507, '{"code": 507, "type": "InternalServerException", "message": "Out of resources"}'),
    (404, '{"code": 404, "type": "ModelNotFoundException", "message": "Model not found: model"}'),
    (413, '{"error": {"type": "too_large", "message": "Worker died.", "field": null}}'),
]


@pytest.mark.parametrize("answered", ANSWERED, ids=[f"{one[0]}" for one in ANSWERED])
def test_a_request_that_was_answered_is_not_sent_again(url: str, answered: tuple[int, str]) -> None:
    Scripted.script = [answered, (200, "{}")]
    with Client(url, wait=0.001) as client, pytest.raises(ServerError):
        client.predict("model", "text")
    assert len(Scripted.seen) == 1


def test_a_silent_server_is_asked_again(url: str) -> None:
    Scripted.script = [("silent", "0.5"), (200, '{"label": "x"}')]
    with Client(url, timeout=0.1, wait=0.001) as client:
        assert client.predict("model", "text") == {"label": "x"}


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(url: str, form: str) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    Scripted.script = [(429, "busy", ("Retry-After", "1" if form == "seconds" else later)), (200, "{}")]
    start = time.monotonic()
    with Client(url, wait=0.001) as client:
        client.predict("model", "text")
    assert 0.9 <= time.monotonic() - start < 5


def test_a_retry_after_beyond_the_deadline_is_the_servers_refusal(url: str) -> None:
    Scripted.script = [(503, '{"error": "later"}', ("Retry-After", "3600")), (200, "{}")]
    start = time.monotonic()
    with Client(url, deadline=2) as client, pytest.raises(ServerError, match="503 unknown: later"):
        client.predict("model", "text")
    assert time.monotonic() - start < 1
    assert len(Scripted.seen) == 1


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "²", "Thu, 99 Foo 2026 00:00:00 GMT", "9" * 500])
def test_a_retry_after_that_is_none_does_no_harm(url: str, value: str) -> None:
    Scripted.script = [(503, "busy", ("Retry-After", value.encode("latin-1").decode("latin-1"))), (200, "{}")]
    with Client(url, wait=0.001, deadline=5) as client:
        if value.startswith("99"):
            with pytest.raises(ServerError):
                client.predict("model", "text")
        else:
            client.predict("model", "text")


@pytest.fixture
def nobodys_url() -> str:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{nobody.getsockname()[1]}"


def test_the_deadline_ends_it_all(nobodys_url: str) -> None:
    start = time.monotonic()
    with Client(nobodys_url, retries=1000, wait=0.05, deadline=0.5) as client:
        with pytest.raises(requests.ConnectionError):
            client.predict("model", "text")
        assert 0.2 < time.monotonic() - start < 2


def test_where_no_server_is_that_is_said_soon(nobodys_url: str) -> None:
    start = time.monotonic()
    with Client(f"{nobodys_url}/") as client, pytest.raises(ServerUnreachable) as caught:
        client.predict("model", "text")
    assert 0.3 < time.monotonic() - start < 4
    assert str(caught.value) == f"no server answers at {nobodys_url}; start one with make serve"
    assert caught.value.__suppress_context__


def test_a_host_that_does_not_exist_is_no_server_either() -> None:
    with Client("http://nowhere.invalid", startup=0) as client, pytest.raises(ServerUnreachable, match="nowhere"):
        client.predict("model", "text")


def test_a_server_that_has_answered_is_waited_for(url: str) -> None:
    """It starts again: the port refuses for longer than where there never was one."""
    Scripted.script = [(200, '{"label": "x"}')] * 2
    with Client(url, wait=0.01, startup=0, retries=100, deadline=30) as client:
        client.predict("model", "text")
        there, client._url = client._url, "http://127.0.0.1:1"
        returns = Timer(0.5, setattr, (client, "_url", there))
        returns.start()
        assert client.predict("model", "text") == {"label": "x"}
    returns.join()


def test_a_reset_is_no_missing_server(url: str) -> None:
    Scripted.script = [("reset", "")] * 3 + [(200, "{}")]
    with Client(url, wait=0.01, startup=0) as client:
        assert client.predict("model", "text") == {}


def test_an_attempt_ends_with_the_deadline(url: str) -> None:
    Scripted.script = [("silent", "3")]
    start = time.monotonic()
    with Client(url, timeout=30, deadline=0.3) as client, pytest.raises(requests.Timeout):
        client.predict("model", "text")
    assert time.monotonic() - start < 2


def test_a_clients_error_is_not_repeated(url: str) -> None:
    Scripted.script = [(422, '{"error": {"type": "invalid_request", "message": "no", "field": "text"}}')]
    with Client(url, wait=0.001) as client, pytest.raises(ServerError) as caught:
        client.predict("model", {"txt": 1})
    assert (caught.value.type, caught.value.field) == ("invalid_request", "text")


REFUSED = (400, '{"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed."}')
KEYS = {"inference": {"key": "old"}, "API": {"key": "api"}}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key_file.json"
    path.write_text(json.dumps(KEYS))
    Scripted.key_file = path
    return path


def test_a_refused_token_is_read_again(url: str, key_file: Path) -> None:
    Scripted.script = [REFUSED, (503, "busy"), (200, "{}"), (200, "{}")]
    with Client(url, key_file=key_file, management_url=url, wait=0.001) as client:
        key_file.write_text(json.dumps({**KEYS, "inference": {"key": "new"}}))
        client.predict("model", "text")
        client.predict("model", "text")
    assert [token for _, token, _ in Scripted.seen] == ["Bearer old", *["Bearer new"] * 3]


def test_an_expired_token_is_renewed(url: str, key_file: Path) -> None:
    Scripted.script, Scripted.renewed = [REFUSED, (200, "{}")], ["new"]
    with Client(url, key_file=key_file, management_url=f"{url}/") as client:
        client.predict("model", "text")
    assert [(path, token) for path, token, _ in Scripted.seen] == [
        ("/predictions/model", "Bearer old"),
        ("/token?type=inference", "Bearer api"),
        ("/predictions/model", "Bearer new"),
    ]


@pytest.mark.parametrize("keys", ['{"inference": {"key": "old"}}', '{"inf', None])
def test_a_token_that_cannot_be_renewed_is_the_servers_refusal(url: str, key_file: Path, keys: str | None) -> None:
    Scripted.script = [REFUSED]
    with Client(url, key_file=key_file, management_url=url) as client:
        if keys is None:
            key_file.unlink()
        else:
            key_file.write_text(keys)
        with pytest.raises(ServerError) as caught:
            client.predict("model", "text")
    assert (caught.value.status, caught.value.type) == (400, "InvalidKeyException")
    assert len(Scripted.seen) == 1


def test_tokens_are_asked_for_once(url: str, key_file: Path) -> None:
    Scripted.script, Scripted.renewed = [REFUSED] * 2, ["new"]
    with Client(url, key_file=key_file, management_url=url) as client, pytest.raises(ServerError):
        client.predict("model", "text")
    assert len(Scripted.seen) == 3
    Scripted.script = [REFUSED]
    with Client(url, token="own", management_url=url) as client, pytest.raises(ServerError):
        client.predict("model", "text")
    assert len(Scripted.seen) == 4


def test_a_file_without_keys_is_named(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text("[]")
    with pytest.raises(ValueError, match=r"^key_file\.json is no key file"):
        Client(key_file=tmp_path / "key_file.json")


def test_a_missing_key_file_is_named_with_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(
        KeyFileMissing, match=r"^no key file '.*/key_file\.json'; a server writes it .*make serve"
    ) as caught:
        Client(key_file=tmp_path / "key_file.json")
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": "upstream is down"}', "upstream is down"),
        ('{"error": ["x"]}', "Bad Gateway"),
        ('["x"]', "Bad Gateway"),
        ("<html>", "Bad Gateway"),
    ],
)
def test_a_proxys_errors_are_errors_too(url: str, body: str, message: str) -> None:
    Scripted.script = [(502, body)]
    with Client(url, retries=0) as client, pytest.raises(ServerError) as caught:
        client.predict("model", "text")
    assert str(caught.value) == f"502 unknown: {message}"


def test_long_lists_are_cut_and_joined(url: str) -> None:
    Scripted.script = [(200, "[1, 2]"), (200, "[3]")]
    with Client(url) as client:
        assert list(client.predict_many("model", ["a", "b", "c"], size=2)) == [1, 2, 3]
    assert [sent for _, _, sent in Scripted.seen] == [["a", "b"], ["c"]]
