"""Payloads meant to hurt: no 5xx, no dead worker, and every good request in between answered right.

`make test` sends a share of them. All, through the proxy where nginx is installed:

    EFFT_HOSTILE=full python -m pytest tests/e2e/test_hostile.py tests/e2e/test_hostile_proxy.py
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from deploy.server import Server
from tests.e2e.test_serving import CONTEXT, TICKET

FULL = os.environ.get("EFFT_HOSTILE") == "full"
COUNT = 2000 if FULL else 500
GOOD_EVERY = 20
TYPES = (
    "application/json", "text/plain", "text/plain; charset=latin-1", "application/octet-stream", "", "text/html",
    "application/json; charset=utf-16", "image/png",
)  # fmt: skip
KEYS = (
    "text", "text_pair", "question", "context", "target", "top_k", "truncation", "stride", "n_best", "inputs",
    "parameters", "instances", "data", "body", "null_threshold", "max_answer_length", "format", "__class__", "\x00", "",
)  # fmt: skip
STRINGS = (
    "", " ", "\x00", "\ud800", "\u202e", "e\u0301" * 50, "🙂" * 40, "中文", "مرحبا", "\r\n\t", "NaN", "null", "[MASK]",
    "[SEP] [CLS]", "x" * 5000, "a " * 600, "\ufeff", "\uffff", "${jndi:ldap://x}", "'; DROP TABLE", "<script>", "%s%n",
    "__import__('os').system('true')", "stride", "truncate",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**400, -0.0, 1e308, 1.5, True, False, None)


def value(generator: random.Random, depth: int = 0) -> Any:
    """Any JSON value, wrong types and deep nesting preferred."""
    kind = generator.randrange(8 if depth < 4 else 4)
    if kind < 2:
        return generator.choice(STRINGS)
    if kind < 4:
        return generator.choice(NUMBERS)
    if kind < 6:
        return [value(generator, depth + 1) for _ in range(generator.randrange(5))]
    return {generator.choice(KEYS): value(generator, depth + 1) for _ in range(generator.randrange(5))}


def raw(generator: random.Random) -> bytes:
    """A body: JSON, JSON cut off, JSON with a broken byte, noise, or nesting without end."""
    kind = generator.randrange(10)
    if kind == 0:
        return generator.randbytes(generator.randrange(200))
    if kind == 1:
        return generator.choice((b"[", b'{"text":', b'{"inputs":[')) * generator.choice((10, 1000, 50_000))
    if kind == 2:
        number = generator.choice(("NaN", "Infinity", "-Infinity", "9" * 6000, "1e999", "-", "0x10", "01"))
        return f'{{"text": "parcel", "top_k": {number}}}'.encode()
    body = json.dumps(value(generator)).encode()
    if kind == 3:
        return body[: generator.randrange(len(body) + 1)]
    if kind == 4 and body:
        place = generator.randrange(len(body))
        return body[:place] + generator.choice((b"\xff", b"\x00", b"\xc0\x80", b"\xed\xa0\x80")) + body[place:]
    return body


def payloads() -> Iterator[tuple[bytes, str]]:
    generator = random.Random(20)
    for _ in range(COUNT - 4):
        yield raw(generator), generator.choice(TYPES)
    yield b"x" * 5_000_000, "text/plain"
    yield b'{"text": "' + b"\\u0000" * 800_000 + b'"}', "application/json"
    yield b"[" + b'"a",' * 1_200_000 + b'"a"]', "application/json"
    yield b"\xff" * 5_000_000, "application/json"


def test_hostile_payloads(server: Server) -> None:
    with requests.Session() as session:
        storm(server, session, server.url)


def storm(server: Server, session: requests.Session, url: str) -> None:
    """Send all payloads to ``url`` by ``session`` and hold every answer, and the workers, against what is promised."""
    workers = server.worker_pids()
    headers = server.headers()

    def send(job: tuple[int, tuple[bytes, str]]) -> tuple[int, bytes]:
        index, (body, kind) = job
        model = ("ticket_routing", "document_qa")[index % 2]
        answer = session.post(
            f"{url}/predictions/{model}", data=body, headers={**headers, "Content-Type": kind}, timeout=120
        )
        if index % GOOD_EVERY == 0:
            check_good(server, session, url)
        return answer.status_code, answer.content

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, enumerate(payloads())))
    assert len(answers) == COUNT
    bad = [(status, content[:200]) for status, content in answers if status >= 500]
    assert not bad
    assert {status for status, _ in answers} >= {200, 400, 413, 422}
    for status, content in answers:
        assert status == 200 or set(json.loads(content)["error"]) == {"type", "message", "field"}
        assert b"Traceback" not in content
    assert server.worker_pids() == workers


def check_good(server: Server, session: requests.Session, url: str | None = None) -> None:
    """Both samples still answer, and answer right."""
    url = url or server.url
    label = session.post(f"{url}/predictions/ticket_routing", data=TICKET, headers=server.headers(), timeout=60)
    assert label.json()["label"] == "billing"
    body = {"question": "Who founded the museum?", "context": CONTEXT}
    answer = session.post(f"{url}/predictions/document_qa", json=body, headers=server.headers(), timeout=60)
    assert answer.json()["answer"] == "Anna Lindqvist"


def test_bodies_that_stop_half_way(server: Server) -> None:
    workers = server.worker_pids()
    token = server.headers()["Authorization"]
    for sent in (b"", b'{"text": "half', b'{"text": "whole"}'):
        with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=10) as connection:
            head = (
                "POST /predictions/ticket_routing HTTP/1.1",
                "Host: x",
                f"Authorization: {token}",
                "Content-Length: 99",
            )
            connection.sendall("\r\n".join([*head, "", ""]).encode() + sent)
    with requests.Session() as session:
        check_good(server, session)
    assert server.worker_pids() == workers


def test_a_forty_page_document_in_one_request(server: Server) -> None:
    """40 pages of 500 words; the sentence with the answer stands on the last one."""
    generator = random.Random(7)
    words = ["the", "of", "river", "stone", "report", "annual", "table", "section", "paragraph", "method", "result"]
    filler = " ".join(" ".join(generator.choices(words, k=11)) + "." for _ in range(40 * 500 // 12))
    document = f"{filler}\r\n\r\nThe museum opens at nine. Anna Lindqvist founded it in 1932. {filler[:2000]}"
    body = {"question": "Who founded the museum?", "context": document, "null_threshold": 100}
    answer = requests.post(
        f"{server.url}/predictions/document_qa", json=body, headers=server.headers(), timeout=120
    ).json()
    assert document[answer["start"] : answer["end"]] == answer["answer"]
    assert answer["answer"] == "Anna Lindqvist"
