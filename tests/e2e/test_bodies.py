"""Bodies as clients send them, through a real server: what its front end makes of them is not ours to choose."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from functools import partial
from typing import Any

import pytest

from deploy.server import Server
from tests.e2e.test_serving import TICKET

_gzip = partial(gzip.compress, mtime=0)
"""The same bytes in every process, so that test ids are the same."""
GOOD = json.dumps({"text": TICKET}).encode()
FORM = "application/x-www-form-urlencoded"
QUESTION = b"{'question' : 'Who founded the museum?', 'context' : 'Anna Lindqvist founded the museum in 1932.'}"


def post(server: Server, body: bytes, model: str = "ticket_routing", **headers: str) -> tuple[int, Any]:
    """Without the headers that a client library would add by itself."""
    connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", f"/predictions/{model}", body, {**server.headers(), **named})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (GOOD, {}),
        (GOOD, {"Content_Type": "application/json"}),
        (_gzip(GOOD), {"Content_Type": "application/json", "Content_Encoding": "gzip"}),
        (_gzip(TICKET.encode()), {"Content_Type": "text/plain", "Content_Encoding": "gzip"}),
        (zlib.compress(GOOD), {"Content_Type": "application/json", "Content_Encoding": "deflate"}),
        (GOOD.decode().encode("utf-16"), {"Content_Type": "application/json"}),
        (GOOD.decode().encode("utf-16-be"), {"Content_Type": "application/json; charset=utf-16"}),
        (TICKET.encode("utf-16-le"), {"Content_Type": "text/plain; charset=utf-16le"}),
        (b"\xef\xbb\xbf" + GOOD, {"Content_Type": "application/json"}),
        (f"text={TICKET}".encode(), {"Content_Type": FORM}),
    ],
)
def test_is_answered(server: Server, body: bytes, headers: dict[str, str]) -> None:
    status, answer = post(server, body, **headers)
    assert (status, answer.get("label")) == (200, "billing"), answer


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (GOOD, {"Content_Type": FORM}, 415, "Content-Type: application/json"),
        (json.dumps({"text": "cats & dogs = fun"}).encode(), {"Content_Type": FORM}, 415, "Content-Type"),
        (b"text=cats & dogs", {"Content_Type": FORM}, 415, "Content-Type"),
        (b"plain text\nof two lines", {"Content_Type": FORM}, 415, "Content-Type"),
        (_gzip(b"a" * 17_000_000), {"Content_Type": "text/plain", "Content_Encoding": "gzip"}, 413, "bytes"),
        (GOOD, {"Content_Type": "text/plain", "Content_Encoding": "gzip"}, 400, "compression"),
        (GOOD, {"Content_Type": "text/plain", "Content_Encoding": "br"}, 415, "gzip"),
        (GOOD, {"Content_Type": "text/plain; charset=klingon"}, 415, "UTF-8"),
        (b"\xfcber", {"Content_Type": "text/plain"}, 400, "UTF-8"),
        (b"", {"Content_Type": "application/json"}, 400, "empty"),
    ],
)
def test_is_refused_with_a_line_that_says_what_to_send(
    server: Server, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    found, answer = post(server, body, **headers)
    assert found == status, answer
    assert said in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


def test_latin_1_as_declared(server: Server) -> None:
    text = "Über die Rechnung: I was charged twice, café."
    expected = post(server, json.dumps({"text": text}).encode(), Content_Type="application/json")
    body = text.encode("latin-1")
    assert post(server, body, Content_Type="text/plain; charset=iso-8859-1") == expected
    body = json.dumps({"text": text}, ensure_ascii=False).encode("latin-1")
    assert post(server, body, Content_Type="application/json; charset=iso-8859-1") == expected


@pytest.mark.parametrize("kind", ["text/plain", None])
def test_text_that_begins_like_json(server: Server, kind: str | None) -> None:
    headers = {} if kind is None else {"Content_Type": kind}
    assert post(server, b"[urgent] I was charged twice for one order.", **headers)[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/json", None])
def test_single_quotes_are_named(server: Server, kind: str | None) -> None:
    headers = {} if kind is None else {"Content_Type": kind}
    status, answer = post(server, QUESTION, "document_qa", **headers)
    assert status == 400
    assert "double quotes" in answer["error"]["message"]
