"""`describe` and `explain` are TorchServe's own headers: a client that sends them gets what its address promises."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import requests

from deploy.server import Server
from tests.e2e.test_serving import TICKET

FORGED = {"describe": "True", "Describe": "True", "explain": "True", "EXPLAIN": "True", "url_path": "html"}
ADDRESSES = (
    "predictions/ticket_routing", "predictions/ticket_routing/1.0", "predictions/ticket_routing/1.0/html",
    "v1/models/ticket_routing:predict", "v2/models/ticket_routing/infer",
)  # fmt: skip


def raw(server: Server, path: str, headers: list[str], body: bytes) -> bytes:
    """What the server answers to headers as they stand, of which requests would merge spellings."""
    lines = [f"POST /{path} HTTP/1.1", "Host: x", f"Authorization: {server.headers()['Authorization']}", *headers]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < _length(answer):
            part = connection.recv(65536)
            if not part:
                break
            answer += part
    return answer.split(b"\r\n\r\n", 1)[1]


def _length(answer: bytes) -> int:
    head = answer.split(b"\r\n\r\n", 1)[0].lower()
    return int(head.split(b"content-length:")[1].split(b"\r\n")[0])


@pytest.mark.parametrize("path", ADDRESSES)
def test_a_client_that_forges_them_gets_a_prediction(server: Server, path: str) -> None:
    forged = [f"{name}: {value}" for name, value in FORGED.items()]
    assert json.loads(raw(server, path, forged, TICKET.encode()))["label"] == "billing"
    for name, value in FORGED.items():
        assert json.loads(raw(server, path, [f"{name}: {value}"], TICKET.encode()))["label"] == "billing"


@pytest.mark.parametrize("path", [*ADDRESSES, "invocations?model_name=ticket_routing", "models/ticket_routing/invoke"])
@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json", "text/plain"]
)
def test_no_inference_address_gives_the_description(server: Server, path: str, kind: str) -> None:
    answer = raw(server, path, ["describe: True", f"Content-Type: {kind}"], b"")
    assert b"canary" not in answer
    # An error, or (/invocations hands its query's model_name over as a field) a prediction.
    assert {"error", "code", "label"} & set(json.loads(answer))


def test_the_management_address_still_describes(server: Server) -> None:
    url = f"http://127.0.0.1:{server.ports[1]}/models/ticket_routing?customized=true"
    for headers in ({}, {"Content-Type": "application/json"}, {"describe": "False"}):
        answer = requests.get(url, headers={**server.headers("management"), **headers}, timeout=60).json()[0]
        described: Any = answer["customizedMetadata"]
        assert described["canary"]["healthy"] is True


def test_a_field_named_like_a_header_spares_the_others_of_its_batch(server: Server) -> None:
    for name in ("Accept", "url_path", "explain", "describe"):
        url = f"{server.url}/explanations/ticket_routing"
        answer = requests.post(url, files={name: ("x", b"x", "text/html")}, headers=server.headers(), timeout=60)
        assert answer.status_code < 500, answer.text
        assert set(answer.json()["error"]) == {"type", "message", "field"}
