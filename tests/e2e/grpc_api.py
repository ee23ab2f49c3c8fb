"""TorchServe's gRPC services as calls, their messages built from descriptors here: no generated code, no protoc.

The fields are those of TorchServe's inference.proto, management.proto and open_inference_grpc.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory
from google.protobuf.message import Message

from deploy.server import Server

PACKAGE = "org.pytorch.serve.grpc"
_TYPES = {"string": 9, "bytes": 12, "int32": 5, "int64": 3, "bool": 8, "message": 11}
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    # message: {field: (number, type, repeated)}
    "InputEntry": {"key": (1, "string", False), "value": (2, "bytes", False)},
    "PredictionsRequest": {
        "model_name": (1, "string", False),
        "model_version": (2, "string", False),
        "input": (3, "InputEntry", True),  # a map is a list of entries on the wire
        "sequence_id": (4, "string", False),
    },
    "Status": {"code": (1, "int32", False), "message": (2, "string", False)},
    "PredictionResponse": {
        "prediction": (1, "bytes", False),
        "sequence_id": (2, "string", False),
        "status": (3, "Status", False),
    },
    "TorchServeHealthResponse": {"health": (1, "string", False)},
    "ManagementResponse": {"msg": (1, "string", False)},
    "DescribeModelRequest": {
        "model_name": (1, "string", False),
        "model_version": (2, "string", False),
        "customized": (3, "bool", False),
    },
    "ListModelsRequest": {"limit": (1, "int32", False), "next_page_token": (2, "int32", False)},
    "ScaleWorkerRequest": {"model_name": (1, "string", False), "min_worker": (4, "int32", False)},
    "InferTensorContents": {"bytes_contents": (8, "bytes", True)},
    "InferInputTensor": {
        "name": (1, "string", False),
        "datatype": (2, "string", False),
        "shape": (3, "int64", True),
        "contents": (5, "InferTensorContents", False),
    },
    "ModelInferRequest": {
        "model_name": (1, "string", False),
        "model_version": (2, "string", False),
        "id": (3, "string", False),
        "inputs": (5, "InferInputTensor", True),
    },
    "ModelInferResponse": {
        "model_name": (1, "string", False),
        "model_version": (2, "string", False),
        "id": (3, "string", False),
        "outputs": (5, "InferInputTensor", True),
    },
}


def _classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="efft_tests.proto", package="efft_tests", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            own = kind in _MESSAGES
            message.field.add(
                name=field,
                number=number,
                type=_TYPES["message" if own else kind],
                type_name=f".efft_tests.{kind}" if own else None,
                label=3 if repeated else 1,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"efft_tests.{name}")) for name in _MESSAGES
    }


_CLASS = _classes()


def message(name: str, /, **fields: Any) -> Message:
    """A message of the table above."""
    return _CLASS[name](**fields)


def prediction(model: str, inputs: Mapping[str, bytes], **fields: str) -> Message:
    """A PredictionsRequest; ``inputs`` as TorchServe's map of parameters, of which ``body`` is the request's body."""
    entries = [message("InputEntry", key=key, value=value) for key, value in inputs.items()]
    return message("PredictionsRequest", model_name=model, input=entries, **fields)


class Api:
    """Calls over one channel; ``address`` is host:port, ``token`` an Authorization header's value."""

    def __init__(self, address: str, token: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
        self.metadata = (("protocol", "gRPC"), ("authorization", token))

    @classmethod
    def of(cls, server: Server, service: str = "inference") -> Api:
        """The channel to one of the server's two gRPC ports, with its token."""
        token = server.headers(service).get("Authorization", "")
        return cls(f"127.0.0.1:{server.settings[f'grpc_{service}_port']}", token)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def unary(self, method: str, request: Message, reply: str, *, timeout: float = 60) -> Any:
        """One request, one reply. Raises grpc.RpcError."""
        call = self.channel.unary_unary(
            f"/{PACKAGE}.{method}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=_CLASS[reply].FromString,
        )
        return call(request, metadata=self.metadata, timeout=timeout)

    def predict(self, model: str, body: bytes, **fields: str) -> bytes:
        """Predictions: the body of the answer."""
        request = prediction(model, {"body": body}, **fields)
        answer: bytes = self.unary(
            "inference.InferenceAPIsService/Predictions", request, "PredictionResponse"
        ).prediction
        return answer

    def stream(self, request: Message, *, timeout: float = 60) -> Iterator[Any]:
        """StreamPredictions: the chunks."""
        call = self.channel.unary_stream(
            f"/{PACKAGE}.inference.InferenceAPIsService/StreamPredictions",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=_CLASS["PredictionResponse"].FromString,
        )
        return call(request, metadata=self.metadata, timeout=timeout)

    def stream_both_ways(self, requests: list[Message], *, timeout: float = 60) -> Iterator[Any]:
        """StreamPredictions2: a chunk for each request."""
        call = self.channel.stream_stream(
            f"/{PACKAGE}.inference.InferenceAPIsService/StreamPredictions2",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=_CLASS["PredictionResponse"].FromString,
        )
        return call(iter(requests), metadata=self.metadata, timeout=timeout)

    def ping(self) -> str:
        """Ping: the health in JSON."""
        health: str = self.unary(
            "inference.InferenceAPIsService/Ping", empty_pb2.Empty(), "TorchServeHealthResponse"
        ).health
        return health
