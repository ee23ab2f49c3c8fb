"""Every method of TorchServe's gRPC services against the real server, with good and with bad input."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from deploy.server import Server
from tests.e2e.grpc_api import Api, message, prediction
from tests.e2e.test_serving import CONTEXT, TICKET

QUESTION = json.dumps({"question": "Who founded the museum?", "context": CONTEXT}).encode()
MANAGEMENT = "management.ManagementAPIsService"
OPEN_INFERENCE = "openinference.GRPCInferenceService"


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    """The inference port; whatever a test sends, the workers must live on."""
    workers = server.worker_pids()
    with Api.of(server) as made:
        yield made
        assert json.loads(made.predict("ticket_routing", TICKET.encode()))["label"] == "billing"
    assert server.worker_pids() == workers


@pytest.fixture
def management(server: Server, api: Api) -> Iterator[Api]:
    with Api.of(server, "management") as made:
        yield made


BAD: list[tuple[dict[str, bytes], str]] = [
    ({}, "empty"),
    ({"body": b""}, "empty"),
    ({"body": b"\xff"}, "invalid_encoding"),
    ({"body": b'{"text": '}, "invalid_json"),
    ({"body": b'{"txet": "misspelt"}'}, "invalid_request"),
    ({"body": TICKET.encode(), "describe": b"True", "explain": b"True"}, "invalid_request"),
    ({"body": TICKET.encode(), "Accept": b"text/html", "Content-Length": b"1"}, "invalid_request"),
    ({"body": TICKET.encode(), "ts_stream_next": b"true"}, "invalid_request"),
    ({"": b"", "\x00": b"\x00"}, "invalid_request"),
]


def test_ping(api: Api) -> None:
    assert json.loads(api.ping()) == {"status": "Healthy"}


def test_predictions(api: Api) -> None:
    assert json.loads(api.predict("document_qa", QUESTION))["answer"] == "Anna Lindqvist"
    # A map's entry may be sent twice; the last counts.
    twice = prediction("ticket_routing", {"body": b"x"})
    twice.input.append(message("InputEntry", key="body", value=TICKET.encode()))
    reply = api.unary("inference.InferenceAPIsService/Predictions", twice, "PredictionResponse")
    assert json.loads(reply.prediction)["label"] == "billing"


@pytest.mark.parametrize(("inputs", "kind"), BAD)
def test_bad_predictions_have_their_error_as_the_answer(api: Api, inputs: dict[str, bytes], kind: str) -> None:
    """TorchServe gives gRPC clients a request's own status only as the body that goes with it."""
    request = prediction("ticket_routing", inputs)
    reply = api.unary("inference.InferenceAPIsService/Predictions", request, "PredictionResponse")
    assert json.loads(reply.prediction)["error"]["type"] == kind
    (part,) = api.stream(request)
    assert json.loads(part.prediction)["error"]["type"] == kind


@pytest.mark.parametrize(("model", "said"), [("", "model_name is required"), ("nobody", "Model not found: nobody")])
def test_models_that_are_not_there(api: Api, model: str, said: str) -> None:
    request = prediction(model, {"body": b"x"})
    for call in (lambda: api.predict(model, b"x"), lambda: list(api.stream(request))):
        with pytest.raises(grpc.RpcError, match=said):
            call()


def test_a_stream_is_one_part(api: Api) -> None:
    (part,) = api.stream(prediction("ticket_routing", {"body": TICKET.encode()}))
    assert json.loads(part.prediction)["label"] == "billing"
    several = json.dumps([TICKET] * 3).encode()
    (part,) = api.stream(prediction("ticket_routing", {"body": several}))
    assert [one["label"] for one in json.loads(part.prediction)] == ["billing"] * 3


def test_streams_share_a_batch_with_other_calls(server: Server, api: Api) -> None:
    """Unary and streamed calls and HTTP requests that reach a worker together keep their own kinds of answers."""
    import requests

    request = prediction("ticket_routing", {"body": TICKET.encode()})
    unary = api.channel.unary_unary(
        "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
        request_serializer=lambda sent: sent.SerializeToString(),
    )
    with requests.Session() as session:
        for _ in range(10):
            streams = [api.stream(request) for _ in range(4)]
            futures = [unary.future(request, metadata=api.metadata, timeout=60) for _ in range(4)]
            url = f"{server.url}/predictions/ticket_routing"
            answer = session.post(url, data=TICKET, headers=server.headers(), timeout=60)
            assert answer.json()["label"] == "billing"
            assert answer.headers["Content-Length"]
            assert "ts_stream_next" not in answer.headers
            assert [len(list(stream)) for stream in streams] == [1] * 4
            assert all(b"billing" in future.result() for future in futures)


def test_calls_that_are_given_up(api: Api) -> None:
    # Work for several times the longest of these waits, however fast the machine.
    request = prediction("ticket_routing", {"body": json.dumps([6 * TICKET] * 24).encode()})
    for seconds in (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02) * 3:
        with pytest.raises(grpc.RpcError, match=r"DEADLINE_EXCEEDED|CANCELLED"):
            list(api.stream(request, timeout=seconds))
        call: Any = api.stream(request)
        time.sleep(seconds)
        call.cancel()


@pytest.mark.parametrize("sequence", [{"sequence_id": "a"}, {}])
@pytest.mark.parametrize("model", ["ticket_routing", "nobody", ""])
def test_streams_both_ways_are_not_for_these_models(api: Api, model: str, sequence: dict[str, str]) -> None:
    """TorchServe keeps StreamPredictions2 for models with state; the client hears that, and nobody else suffers."""
    requests = [prediction(model, {"body": TICKET.encode()}, **sequence)] * 3
    try:
        parts = list(api.stream_both_ways(requests, timeout=3))
    except grpc.RpcError:
        return
    assert parts
    assert all(part.status.code for part in parts if not part.prediction)


def test_a_token_is_needed(server: Server, api: Api) -> None:
    with Api(f"127.0.0.1:{server.settings['grpc_inference_port']}", "Bearer x") as stranger:
        for call in (stranger.ping, lambda: stranger.predict("ticket_routing", b"x")):
            with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
                call()


def test_there_are_no_explanations(api: Api) -> None:
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        api.unary("inference.InferenceAPIsService/Explanations", empty_pb2.Empty(), "PredictionResponse")


def test_describe(management: Api) -> None:
    request = message("DescribeModelRequest", model_name="ticket_routing", customized=True)
    (described,) = json.loads(management.unary(f"{MANAGEMENT}/DescribeModel", request, "ManagementResponse").msg)
    assert described["customizedMetadata"]["canary"]["healthy"] is True
    request = message("DescribeModelRequest", model_name="ticket_routing")
    (described,) = json.loads(management.unary(f"{MANAGEMENT}/DescribeModel", request, "ManagementResponse").msg)
    assert described["workers"][0]["status"] == "READY"


@pytest.mark.parametrize("customized", [True, False])
@pytest.mark.parametrize(
    "fields", [{"model_name": "nobody"}, {}, {"model_name": "ticket_routing", "model_version": "9"}]
)
def test_bad_descriptions(management: Api, fields: dict[str, str], customized: bool) -> None:
    request = message("DescribeModelRequest", customized=customized, **fields)
    with pytest.raises(grpc.RpcError, match=r"NOT_FOUND|INTERNAL|UNKNOWN"):
        management.unary(f"{MANAGEMENT}/DescribeModel", request, "ManagementResponse")


def test_list_models(management: Api) -> None:
    reply = management.unary(f"{MANAGEMENT}/ListModels", message("ListModelsRequest", limit=100), "ManagementResponse")
    assert "ticket_routing" in {model["modelName"] for model in json.loads(reply.msg)["models"]}


def test_management_wants_its_own_token(server: Server) -> None:
    port, token = server.settings["grpc_management_port"], server.headers()["Authorization"]
    with Api(f"127.0.0.1:{port}", token) as stranger, pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
        stranger.unary(f"{MANAGEMENT}/ListModels", message("ListModelsRequest"), "ManagementResponse")


def infer(
    api: Api, *strings: bytes, datatype: str = "BYTES", model: str = "ticket_routing", name: str = "input-0"
) -> Any:
    contents = message("InferTensorContents", bytes_contents=list(strings))
    tensor = message("InferInputTensor", name=name, datatype=datatype, shape=[len(strings)], contents=contents)
    request = message("ModelInferRequest", model_name=model, id="seven", inputs=[tensor])
    return api.unary(f"{OPEN_INFERENCE}/ModelInfer", request, "ModelInferResponse")


def test_model_infer(api: Api) -> None:
    reply = infer(api, TICKET.encode(), TICKET.encode())
    assert (reply.id, reply.model_name, reply.model_version) == ("seven", "ticket_routing", "1.0")
    # The front end writes a string of the answer as JSON: in quotes.
    answers = [json.loads(json.loads(text)) for text in reply.outputs[0].contents.bytes_contents]
    assert [answer["label"] for answer in answers] == ["billing"] * 2


@pytest.mark.parametrize(
    ("strings", "datatype"), [((), "BYTES"), ((b"",), "BYTES"), ((b"\xff",), "BYTES"), ((), "FP32")]
)
def test_a_bad_model_infer_has_its_error_as_the_answer(api: Api, strings: tuple[bytes, ...], datatype: str) -> None:
    (text,) = infer(api, *strings, datatype=datatype).outputs[0].contents.bytes_contents
    assert set(json.loads(json.loads(text))["error"]) == {"type", "message", "field"}


def test_model_infer_without_anything(api: Api) -> None:
    with pytest.raises(grpc.RpcError, match="model_name is required"):
        api.unary(f"{OPEN_INFERENCE}/ModelInfer", message("ModelInferRequest"), "ModelInferResponse")
    request = message("ModelInferRequest", model_name="ticket_routing")
    reply = api.unary(f"{OPEN_INFERENCE}/ModelInfer", request, "ModelInferResponse")
    assert reply.outputs[0].name == "error"


def test_the_open_inference_protocols_health(api: Api) -> None:
    for method, field in (("ServerLive", b"\x08\x01"), ("ServerReady", b"\x08\x01")):
        call = api.channel.unary_unary(f"/org.pytorch.serve.grpc.{OPEN_INFERENCE}/{method}")
        assert call(b"", metadata=api.metadata, timeout=60) == field
    ready = api.channel.unary_unary(f"/org.pytorch.serve.grpc.{OPEN_INFERENCE}/ModelReady")
    name = b"ticket_routing"
    assert ready(b"\x0a" + bytes([len(name)]) + name, metadata=api.metadata, timeout=60) == b"\x08\x01"
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        ready(b"\x0a\x06nobody", metadata=api.metadata, timeout=60)
