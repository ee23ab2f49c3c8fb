"""Over HTTP, against the real server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from builder.compile import ROOT
from deploy.server import Server
from tests.e2e.conftest import OTHERS

TICKET = "I was charged twice for the same order, please refund one of the payments."
CONTEXT = "The museum opens at nine. Anna Lindqvist founded it in 1932 — in a former 🏭 factory."
INPUTS = ROOT / "setup_configs" / "sample_inputs"


def ask(server: Server, model: str, body: bytes | str | dict[str, Any], **headers: str) -> requests.Response:
    data = json.dumps(body) if isinstance(body, dict) else body
    if isinstance(data, str):
        data = data.encode()
    kind = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
    return requests.post(
        f"{server.url}/predictions/{model}", data=data, headers={**server.headers(), **kind, **headers}, timeout=60
    )


def test_a_token_is_needed(server: Server) -> None:
    answer = requests.post(f"{server.url}/predictions/ticket_routing", data=TICKET, timeout=60)
    assert answer.status_code == 400
    assert "Token" in answer.text


@pytest.mark.parametrize(
    "body", [TICKET, {"text": TICKET}, {"text": TICKET, "target": 0}, json.dumps({"text": TICKET})]
)
def test_classification_takes_every_form(server: Server, body: str | dict[str, Any]) -> None:
    answer = ask(server, "ticket_routing", body)
    assert answer.status_code == 200
    assert answer.json()["label"] == "billing"
    assert 0.5 < answer.json()["score"] <= 1


def test_question_answering_gives_offsets_into_the_context(server: Server) -> None:
    answer = ask(server, "document_qa", {"question": "Who founded the museum?", "context": CONTEXT}).json()
    assert answer["answer"] == "Anna Lindqvist"
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]
    assert 0 < answer["score"] <= 1


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_serve(server: Server, name: str) -> None:
    answer = ask(server, name, {"text": "the parcel has not arrived", "text_pair": "where is it"})
    assert answer.status_code == 200
    assert answer.json()["label"] in ("LABEL_0", "LABEL_1", "LABEL_2")


CLIENT_ERRORS = (400, 413, 422)
BAD: list[tuple[bytes | dict[str, Any], str]] = [
    (b'{"text": "unfinished', "malformed"),
    (b"", "empty"),
    (b"\xff\xfe\xfa not utf-8", "not UTF-8"),
    ({"text": ""}, "empty text"),
    ({"text": 7}, "wrong type"),
    ({"txet": "misspelt"}, "unknown key"),
    ({"text": "parcel " * 2000, "truncation": "error"}, "over-long"),
]


@pytest.mark.parametrize(("body", "what"), BAD, ids=[what for _, what in BAD])
def test_a_bad_request_gets_one_clear_line(server: Server, body: bytes | dict[str, Any], what: str) -> None:
    answer = ask(server, "ticket_routing", body)
    assert answer.status_code in CLIENT_ERRORS, answer.text
    message = answer.json()["error"]["message"]
    assert message
    assert "\n" not in message
    assert "Traceback" not in answer.text


def test_bad_requests_inside_a_batch_spare_the_good_ones(server: Server) -> None:
    url = f"http://127.0.0.1:{server.ports[1]}/models"
    settings = {
        "url": "ticket_routing.mar", "model_name": "batched", "batch_size": 14, "max_batch_delay": 2000,
        "initial_workers": 1, "synchronous": "true",
    }  # fmt: skip
    registered = requests.post(url, params=settings, headers=server.headers("management"), timeout=120)
    assert registered.ok, registered.text
    workers = server.worker_pids()
    good: list[bytes | str | dict[str, Any]] = [TICKET, {"text": TICKET}] * 4
    mixed = [body for pair in zip(good, [body for body, _ in BAD], strict=False) for body in pair]
    with ThreadPoolExecutor(len(mixed)) as pool:
        answers = list(pool.map(lambda body: ask(server, "batched", body), mixed))
    assert [answer.json()["label"] for answer in answers[::2]] == ["billing"] * len(BAD)
    assert {answer.status_code for answer in answers[::2]} == {200}
    assert all(answer.status_code in CLIENT_ERRORS for answer in answers[1::2])
    assert server.worker_pids() == workers
    requests.delete(f"{url}/batched", headers=server.headers("management"), timeout=60)


def test_user_text_stays_out_of_the_logs(server: Server) -> None:
    marker = "xylophone-4711-zebra"
    ask(server, "ticket_routing", marker)
    ask(server, "ticket_routing", {"text": marker, "bad": marker})
    assert not [log for log in (server.folder / "logs").glob("*") if marker in log.read_text(errors="replace")]
