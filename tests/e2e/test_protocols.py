"""TorchServe's other doors: KServe over HTTP, descriptions and metrics."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import requests

from deploy.server import Server
from handler.canary import close
from tests.e2e.conftest import free_ports
from tests.e2e.test_serving import CONTEXT, TICKET, ask

QUESTION = {"question": "Who founded the museum?", "context": CONTEXT}


def test_kserve_v1(server: Server) -> None:
    body = {"instances": [TICKET, {"text": TICKET}]}
    answer = requests.post(
        f"{server.url}/v1/models/ticket_routing:predict", json=body, headers=server.headers(), timeout=60
    )
    assert answer.status_code == 200
    assert [prediction["label"] for prediction in answer.json()["predictions"]] == ["billing", "billing"]


def test_kserve_v2_with_columns_named_after_fields(server: Server) -> None:
    inputs = [{"name": n, "shape": [1], "datatype": "BYTES", "data": [text]} for n, text in QUESTION.items()]
    answer = requests.post(
        f"{server.url}/v2/models/document_qa/infer", json={"inputs": inputs}, headers=server.headers(), timeout=60
    )
    assert answer.status_code == 200
    (output,) = answer.json()["outputs"]
    assert output["shape"] == [1]
    assert json.loads(output["data"][0])["answer"] == "Anna Lindqvist"


@pytest.mark.parametrize("envelope", ["kserve", "kservev2"])
def test_torchserves_own_envelopes(store: Path, tmp_path: Path, envelope: str) -> None:
    """A server whose configuration asks for an envelope hands over single inputs instead of bodies."""
    tensor = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": ["the parcel"]}
    instances = [{"text": "the parcel"}, {"data": "the parcel"}, {"text": ""}]
    body = {"instances": instances} if envelope == "kserve" else {"id": "seven", "inputs": [tensor]}
    ports = free_ports(5)
    settings = {"service_envelope": envelope}
    with Server(tmp_path, store, ports=tuple(ports[:3]), grpc_ports=tuple(ports[3:]), settings=settings) as own:
        own.start(["roberta_like"])
        answer = ask(own, "roberta_like", body).json()
    if envelope == "kserve":
        first, second, third = answer["predictions"]
        assert third["error"]["type"] == "empty"
    else:
        assert answer["id"] == "seven"
        first = second = json.loads(answer["outputs"][0]["data"][0])
    assert first["label"] in ("LABEL_0", "LABEL_1", "LABEL_2")
    assert close(first, second, 1e-5)


def test_the_description_has_a_canarys_outcome(server: Server) -> None:
    url = f"http://127.0.0.1:{server.ports[1]}/models/ticket_routing?customized=true"
    answer = requests.get(url, headers=server.headers("management"), timeout=60).json()[0]
    described = answer["customizedMetadata"]
    described = json.loads(described) if isinstance(described, str) else described
    assert described["canary"]["healthy"] is True
    assert described["task"] == "sequence_classification"


def test_metrics_are_shown_in_prometheus_form(server: Server) -> None:
    ask(server, "ticket_routing", {"text": ""})
    time.sleep(1.1)
    ask(server, "ticket_routing", TICKET)
    url = f"http://127.0.0.1:{server.ports[2]}/metrics"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        lines = requests.get(url, headers=server.headers("management"), timeout=10).text.splitlines()
        figures = {
            line.split("{")[0] for line in lines if line.startswith("efft_") and 'ModelName="ticket_routing"' in line
        }
        if {"efft_tokens", "efft_request_errors", "efft_encode_time"} <= figures:
            return
        time.sleep(0.5)
    pytest.fail(f"metrics shown: {sorted(figures)}")
