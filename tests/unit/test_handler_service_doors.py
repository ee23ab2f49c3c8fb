"""Which of TorchServe's doors a request came through, and what a client's headers cannot make of it."""

from __future__ import annotations

import base64
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from ts.context import Context, RequestProcessor

from handler.draining import BUSY, STOP, Drain
from handler.service import EncoderService, wants_html
from tests.unit.handler_fakes import PooledLogits, save_archive
from tests.unit.test_handler_service import Figures

TEXT = "the cat sat"
HTTP = {"Host": "x", "Content-Length": "11"}
PREDICTIONS = {**HTTP, "explain": "False", "url_path": ""}
BODY = {"body": {"content-type": ""}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_archive(tmp_path_factory.mktemp("archive"), PooledLogits(2), "sequence_classification", {})


@pytest.fixture(scope="module")
def service(folder: Path) -> EncoderService:
    made = EncoderService()
    made.initialize(context(folder))
    return made


def context(folder: Path, *headers: dict[str, Any]) -> Context:
    manifest = {"model": {"modelName": "fake", "modelVersion": "1.0"}}
    made = Context("fake", str(folder), manifest, 8, None, "0.12")
    made.request_ids = {index: f"id-{index}" for index in range(len(headers))}
    made.request_processor = [RequestProcessor(dict(own)) for own in headers]
    made.metrics = Figures()
    return made


def answer(service: EncoderService, folder: Path, row: dict[str, Any], headers: dict[str, Any]) -> Any:
    (body,) = service.handle([row], context(folder, headers))
    return json.loads(body)


@pytest.mark.parametrize("name", ["describe", "Describe", "explain", "Explain", "EXPLAIN"])
def test_a_clients_header_asks_for_nothing(service: EncoderService, folder: Path, name: str) -> None:
    headers = {**BODY, name: "True", **PREDICTIONS}  # TorchServe's own come behind the client's
    assert set(answer(service, folder, {"body": TEXT}, headers)) == {"label", "score"}


@pytest.mark.parametrize(
    "headers",
    [
        {**PREDICTIONS, "describe": "True"},
        {**HTTP, "describe": "True", "Content-Type": "application/x-www-form-urlencoded"},
        {**HTTP, "describe": "True", "content-type": "Multipart/Form-Data; boundary=x"},
        {**HTTP, "describe": "true"},
    ],
)
def test_an_empty_row_with_a_clients_describe_is_no_description(
    service: EncoderService, folder: Path, headers: dict[str, str]
) -> None:
    assert set(answer(service, folder, {}, headers)) == {"error"}


@pytest.mark.parametrize("headers", [{**HTTP, "describe": "True"}, {"describe": "True"}])
def test_the_management_addresses_description(service: EncoderService, folder: Path, headers: dict[str, str]) -> None:
    assert answer(service, folder, {}, headers)["canary"]["healthy"] is True


def test_a_describe_header_among_others_rows_is_a_clients(service: EncoderService, folder: Path) -> None:
    described, other = service.handle(
        [{}, {"body": TEXT}], context(folder, {**HTTP, "describe": "True"}, {**BODY, **PREDICTIONS})
    )
    assert json.loads(described)["error"]["type"] == "empty"
    assert json.loads(other)["label"]


@pytest.mark.parametrize("name", ["Accept", "accept", "url_path", "explain", "describe", "content-length"])
def test_a_parameter_named_like_a_header_spares_the_batch(service: EncoderService, folder: Path, name: str) -> None:
    """Of a form every field's name stands among the headers, with its content type."""
    form = {"text": {"content-type": ""}, name: {"content-type": "text/html"}}
    rows = [{"text": TEXT.encode(), name: b"x"}, {"body": TEXT}]
    # KServe's explain address adds no url_path of its own.
    own = context(folder, {**form, **HTTP, "explain": "True"} if name != "explain" else form, {**BODY, **PREDICTIONS})
    first, second = service.handle(rows, own)
    assert json.loads(first)["error"]["type"] in ("invalid_request", "unsupported")
    assert json.loads(second)["label"]


def test_the_page_is_asked_for_by_a_header_in_any_case(service: EncoderService, folder: Path) -> None:
    assert wants_html(context(folder, {"ACCEPT": "text/html"}), 0)
    assert wants_html(context(folder, {"url_path": "html"}), 0)
    assert not wants_html(context(folder, {"url_path": "", "Url_Path": "html"}), 0)


def test_answers_to_grpc_end_their_stream_and_those_to_http_begin_none(service: EncoderService, folder: Path) -> None:
    sequence = {"ts_request_sequence_id": "a", "ts_request_sequence_end": "true"}
    own = context(folder, BODY, {**BODY, **PREDICTIONS}, {**BODY, **sequence}, {**BODY, "Content-Length": "1"})
    service.handle([{"body": TEXT}] * 4, own)
    marks = [own.get_response_headers(index).get("ts_stream_next") for index in range(4)]
    assert marks == ["false", None, "false", None]


def test_a_failure_of_routing_is_an_internal_error_for_each_row(
    service: EncoderService, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> bool:
        raise ValueError("hunter2")

    monkeypatch.setattr("handler.service.wants_html", fail)
    own = context(folder, {**BODY, **HTTP, "explain": "True"}, {**BODY, **PREDICTIONS})
    replies = [json.loads(body) for body in service.handle([{"body": TEXT}] * 2, own)]
    assert [reply["error"]["type"] for reply in replies] == ["internal"] * 2
    assert "hunter2" not in caplog.text


def open_inference(*strings: str, **fields: Any) -> dict[str, Any]:
    data = [base64.b64encode(text.encode()).decode() for text in strings]
    tensor = {"name": "input-0", "shape": [len(data)], "datatype": "BYTES", "data": data}
    return {"id": "", "model_name": "fake", "inputs": [tensor], **fields}  # as the front end writes it


JSON_BODY = {"body": {"content-type": "application/json"}}
NEEDED = {"id", "model_name", "model_version", "outputs"}


def test_model_infer_has_every_field_the_front_end_reads(service: EncoderService, folder: Path) -> None:
    reply = answer(service, folder, {"body": open_inference(TEXT, TEXT, id="seven")}, JSON_BODY)
    assert set(reply) == NEEDED
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("seven", "fake", "1.0")
    (output,) = reply["outputs"]
    assert output["shape"] == [2]
    assert all(json.loads(text)["label"] for text in output["data"])


@pytest.mark.parametrize(
    "body",
    [
        open_inference(),
        open_inference(""),
        open_inference(inputs=[{"name": "a", "shape": [1], "datatype": "BYTES", "data": ["no base64!"]}]),
        open_inference(inputs=[{"name": "a", "shape": [1], "datatype": "BYTES", "data": ["/w=="]}]),
        open_inference(inputs=[{"name": "a", "shape": [1], "datatype": "FP32", "data": [1.0]}]),
        open_inference(inputs=[{"name": "a", "shape": [1], "datatype": "FP16"}]),
        open_inference(inputs=[]),
        open_inference(id=None, model_name=None),
    ],
)
def test_a_bad_model_infer_has_them_too(service: EncoderService, folder: Path, body: Any) -> None:
    reply = answer(service, folder, {"body": body}, JSON_BODY)
    assert set(reply) == NEEDED
    assert all(isinstance(reply[name], str) for name in ("id", "model_name", "model_version"))
    answers = [json.loads(text) for text in reply["outputs"][0]["data"]]
    assert "error" in answers[0] or body["id"] is None


def test_a_stopping_server_sends_requests_away(folder: Path, tmp_path: Path) -> None:
    service = EncoderService(drain=Drain(tmp_path / "drain"))
    service.initialize(context(folder))
    assert answer(service, folder, {"body": TEXT}, {**BODY, **PREDICTIONS})["label"]
    (tmp_path / "drain" / STOP).touch()
    own = context(folder, {**BODY, **PREDICTIONS}, BODY)
    bodies = service.handle([{"body": TEXT}] * 2, own)
    assert [own.get_response_status(index)[0] for index in range(2)] == [503, 503]
    assert [own.get_response_headers(index)["Retry-After"] for index in range(2)] == ["1", "1"]
    assert json.loads(bodies[0])["error"]["type"] == "overloaded"
    assert answer(service, folder, {}, {**HTTP, "describe": "True"})["canary"]["healthy"] is True
    (tmp_path / "drain" / STOP).unlink()
    assert answer(service, folder, {"body": TEXT}, {**BODY, **PREDICTIONS})["label"]


def test_a_running_batch_holds_the_lock_until_it_is_answered(tmp_path: Path) -> None:
    drain = Drain(tmp_path)
    with (tmp_path / BUSY).open("r+") as other:
        with drain.busy() as stopping:
            assert not stopping
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (tmp_path / STOP).touch()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with drain.busy() as stopping:  # refused without the lock, which the other one has
            assert stopping


def test_a_folder_that_cannot_be_used_is_told_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with Drain(tmp_path / "file").busy() as stopping:
        assert not stopping
    assert "this worker does not drain" in caplog.text
