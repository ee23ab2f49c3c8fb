"""The adapter, with TorchServe's own context object and none of its processes."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ts.context import Context, RequestProcessor
from ts.protocol.otf_message_handler import create_predict_response
from ts.torch_handler.request_envelope.kserve import KServeEnvelope
from ts.torch_handler.request_envelope.kservev2 import KServev2Envelope

from handler import draining
from handler.service import EncoderService
from tests.unit.handler_fakes import PooledLogits, save_archive

TEXT = "the cat sat"


class Figures:
    """Stands in for TorchServe's metrics cache."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add_metric(self, name: str, value: float, unit: str, **_: Any) -> None:
        assert math.isfinite(value)
        self.names.append(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_archive(tmp_path_factory.mktemp("archive"), PooledLogits(2), "sequence_classification", {})


@pytest.fixture(scope="module")
def service(folder: Path) -> EncoderService:
    made = EncoderService()
    made.initialize(context(folder, 0))
    return made


def context(folder: Path, requests: int, *, model: str = "fake", **headers: str) -> Context:
    made = Context(model, str(folder), {"model": {"modelName": model, "modelVersion": "1.0"}}, 8, None, "0.12")
    made.request_ids = {index: f"id-{index}" for index in range(requests)}
    parameter = {} if "describe" in headers else {"body": {"content-type": "application/json"}}
    made.request_processor = [RequestProcessor({**parameter, **headers}) for _ in range(requests)]
    made.metrics = Figures()
    return made


def test_each_request_has_its_own_status_and_the_reply_can_be_sent(service: EncoderService, folder: Path) -> None:
    own = context(folder, 3)
    bodies = service.handle([{"body": {"text": TEXT}}, {"body": b"{"}, {"body": {"text": TEXT, "x": "\u4e2d"}}], own)
    assert [own.get_response_status(index)[0] for index in range(3)] == [200, 400, 422]
    assert [own.get_response_content_type(index) for index in range(3)] == ["application/json"] * 3
    assert json.loads(bodies[0])["label"] in ("LABEL_0", "LABEL_1")
    assert create_predict_response(bodies, own.request_ids, "", 200, context=own)


FIGURE = re.compile(r"\[METRICS\](\w+)\.\w+:([\d.e+-]+)\|#([^|]*)\|#type:(\w+)")
"""What TorchServe's front end reads of a line of a worker."""


def test_figures_are_handed_over_beside_the_requests(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    own = EncoderService()
    # A name of its own: the thread of the service that other tests share writes its figures whenever it likes.
    own.initialize(context(folder, 0, model="alone"))
    own.handle([{"body": {"text": TEXT}}, {"body": b"{"}], context(folder, 2, model="alone"))
    expected = {"efft_tokens", "efft_padding", "efft_request_errors", "efft_encode_time", "efft_canary"}
    expected |= {"efft_stage_seconds_bucket", "efft_stage_seconds_sum", "efft_pass_tokens_count"}
    for _ in range(200):  # a thread of its own does it
        lines = [line for line in caplog.messages if "ModelName:alone," in line]
        found = [match.groups() for match in map(FIGURE.search, lines) if match]
        if expected <= {name for name, *_ in found}:
            break
        time.sleep(0.01)
    assert expected <= {name for name, *_ in found}
    assert all("Worker:" in dimensions for _, _, dimensions, _ in found)
    dimensions = f"ModelName:alone,Level:Model,Worker:{os.getpid()},Stage:run,le:+Inf"
    buckets = [(value, kind) for name, value, labels, kind in found if labels == dimensions]
    assert buckets == [("2", "COUNTER")]  # the canary's pass and this batch's
    assert "id-0" not in caplog.text


def test_an_archive_that_cannot_be_served_says_why_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match=r"archive.json is missing"):
        EncoderService().initialize(context(tmp_path, 0))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "fake cannot be served: archive.json is missing from the archive; build it again"


def test_a_score_that_is_no_number_is_an_internal_error(
    service: EncoderService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service._predictor is not None
    nan = lambda ids, segments, mask: (np.full((len(ids), 2), np.nan, dtype=np.float32),)  # noqa: E731
    monkeypatch.setattr(service._predictor._packer, "_model", nan)
    own = context(folder, 1)
    (body,) = service.handle([{"body": {"text": TEXT}}], own)
    assert own.get_response_status(0)[0] == 500
    assert json.loads(body)["error"]["type"] == "internal"


def test_an_answer_larger_than_the_server_sends_is_a_clients_error(folder: Path) -> None:
    own = EncoderService()
    own.initialize(context(folder, 0))
    assert own._predictor is not None
    limits = own._predictor.config.limits.model_copy(update={"max_answer_bytes": 300})
    object.__setattr__(own._predictor.config, "limits", limits)
    request = context(folder, 2)
    small, large = own.handle([{"body": TEXT}, {"body": [TEXT] * 50}], request)
    assert json.loads(small)["label"]
    assert request.get_response_status(1)[0] == 413
    assert json.loads(large)["error"]["type"] == "too_large"


def test_describe(service: EncoderService, folder: Path) -> None:
    (body,) = service.handle([{}], context(folder, 1, describe="True"))
    assert json.loads(body)["canary"]["healthy"] is True


def test_no_users_text_is_logged(service: EncoderService, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    rows = [{"body": {"text": "hunter2 " * n}} for n in (1, 200)]
    rows += [{"body": b'{"text": "hunter2'}, {"body": {"text": "a", "hunter2": 1}}]
    service.handle(rows, context(folder, len(rows)))
    assert "hunter2" not in caplog.text


def test_torchserves_kserve_envelopes(service: EncoderService, folder: Path) -> None:
    first = KServeEnvelope(service.handle).handle([{"body": {"instances": [{"text": TEXT}, TEXT]}}], context(folder, 1))
    assert first[0]["predictions"][0] == first[0]["predictions"][1]
    tensor = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
    second = KServev2Envelope(service.handle)
    second.context = context(folder, 1)
    (reply,) = second.handle([{"body": {"inputs": [tensor]}}], second.context)
    assert json.loads(reply["outputs"][0]["data"][0]) == first[0]["predictions"][0]
    json.dumps(reply)


def test_nothing_in_an_envelope_is_a_clients_error(service: EncoderService, folder: Path) -> None:
    own = context(folder, 1)
    KServeEnvelope(service.handle).handle([{"body": {"instances": []}}], own)
    assert own.get_response_status(0)[0] in (400, 422)


def test_a_worker_whose_device_has_failed_answers_and_ends(
    service: EncoderService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(draining, "LAST_ANSWERS", 0.01)
    monkeypatch.setattr(draining.os, "_exit", ended.append)
    service.handle([{"body": {"text": TEXT}}], context(folder, 1))
    time.sleep(0.1)
    assert not ended
    assert service._predictor is not None
    monkeypatch.setattr(service._predictor._packer, "lost", True)
    (body,) = service.handle([{"body": {"text": TEXT}}], context(folder, 1))
    assert json.loads(body)["error"]["type"] == "overloaded"
    for _ in range(100):
        if ended:
            break
        time.sleep(0.01)
    assert ended == [1]
