"""KServe's protocols over HTTP: version 1, and the Open Inference Protocol (version 2) with its binary tensors.

Sources: KServe's documentation, "V1 inference protocol" and "Open Inference Protocol (V2)"; of the binary form
NVIDIA Triton's "Binary Tensor Data Extension", whose client sends it unless told otherwise. How tensors become inputs,
and answers a tensor of strings, is :mod:`handler.decode`'s matter, as it is behind TorchServe.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from collections.abc import Sequence as Many
from http import HTTPStatus
from typing import Any

from handler.bodies import Headers, decompressed
from handler.decode import Call
from handler.errors import RequestError
from handler.wire.base import Asked, HttpReply, Outcome, Protocol, View, encoded, first_error, json_body, placed

VERSION = "1.0"
"""Of every archive's model."""
VERSIONS = ("1", "1.0")
"""As requests may call it."""
JSON_LENGTH = "inference-header-content-length"
"""The header that says how many bytes of a body are JSON; binary tensors follow."""
BINARY = "application/octet-stream"
_UNPROCESSABLE = 422


class _KServe(Protocol):
    def error(self, error: RequestError) -> Any:
        """See Protocol.error."""
        return {"error": f"{error.field}: {error.message}" if error.field else error.message}

    def status(self, error: RequestError) -> int:
        """The protocol answers 400 where a request is well-formed but wrong."""
        return HTTPStatus.BAD_REQUEST.value if error.status == _UNPROCESSABLE else error.status


class KServeV1(_KServe):
    """``{"instances": [...]}`` -> ``{"predictions": [...]}``."""

    name = "kserve_v1"

    def read(self, asked: Asked, view: View) -> Call:
        """See Protocol.read."""
        body = json_body(asked, view.config.limits.max_body_bytes)
        if "instances" not in body:
            raise RequestError("invalid_request", "the body must be an object with instances", "instances")
        return view.decoder.decode({"body": body})

    def write(self, asked: Asked, call: Call, outcomes: Many[Outcome], view: View) -> HttpReply:
        """An error within a list stands in its place; where no input has an answer the first error is the reply's."""
        return HttpReply(200, encoded(call.wrap(_some(outcomes))))


class KServeV2(_KServe):
    """Tensors of strings in, one tensor of strings out, each an answer in JSON."""

    name = "kserve_v2"

    def read(self, asked: Asked, view: View) -> Call:
        """See Protocol.read."""
        limit = view.config.limits.max_body_bytes
        body = _binary_body(asked, limit) if JSON_LENGTH in asked.headers else json_body(asked, limit)
        inputs, parameters = body.get("inputs"), body.get("parameters", {})
        if not isinstance(inputs, list) or not all(isinstance(t, dict) and "datatype" in t for t in inputs):
            raise RequestError("invalid_request", "inputs must be a list of tensors with name, shape, datatype, data")
        if not isinstance(parameters, dict):
            raise RequestError("invalid_request", "parameters must be an object", "parameters")
        binary = _wants_binary(body, parameters)
        # The protocol's own parameters are none of the task's.
        own = {name: value for name, value in parameters.items() if name != "binary_data_output"}
        call = view.decoder.decode({"body": {**body, "parameters": own}})
        call.options = {"binary": binary}
        return call

    def write(self, asked: Asked, call: Call, outcomes: Many[Outcome], view: View) -> HttpReply:
        """An error within a tensor stands in its place; where no input has an answer the first error is the reply's."""
        payload = {"model_name": view.name, "model_version": VERSION, **call.wrap(_some(outcomes))}
        if not call.options["binary"]:
            return HttpReply(200, encoded(payload))
        (tensor,) = payload["outputs"]
        raw = b"".join(struct.pack("<I", len(text)) + text for text in (value.encode() for value in tensor.pop("data")))
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = encoded(payload)
        return HttpReply(200, head + raw, BINARY, {"Inference-Header-Content-Length": str(len(head))})


def _some(outcomes: Many[Outcome]) -> list[Any]:
    """Answers and errors in their places. Raises the first error where there are no answers."""
    failed = first_error(outcomes)
    if failed and all(isinstance(outcome.answer, RequestError) for outcome in outcomes):
        raise failed[1]
    return placed(outcomes)


def _wants_binary(body: dict[str, Any], parameters: dict[str, Any]) -> bool:
    """Whether the output is to be sent in binary: all outputs', or the named one's."""
    outputs = body.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise RequestError("invalid_request", "outputs must be a list of objects", "outputs")
    for output in outputs:
        if output.get("name") != "predictions":
            raise RequestError("invalid_request", "the only output is predictions", "outputs")
        own = output.get("parameters", {})
        if isinstance(own, dict) and "binary_data" in own:
            return own["binary_data"] is True
    return parameters.get("binary_data_output") is True


def _binary_body(asked: Asked, limit: int) -> dict[str, Any]:
    """A body whose tensors follow its JSON. Raises RequestError."""
    headers = Headers(asked.headers)
    raw = decompressed(asked.body, headers, limit)
    stated = asked.headers[JSON_LENGTH]
    length = int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 16 else -1
    if not 0 < length <= len(raw):
        raise RequestError("invalid_request", f"Inference-Header-Content-Length must be from 1 to {len(raw)}")
    body = json_body(Asked(raw[:length]), limit)
    inputs = body.get("inputs")
    rest = memoryview(raw)[length:]
    for tensor in inputs if isinstance(inputs, list) else ():
        size = _binary_size(tensor)
        if size is None:
            continue
        if size > len(rest):
            raise RequestError("invalid_request", "the body ends before its tensors do", "inputs")
        if tensor.get("datatype") == "BYTES":  # another type is refused with the tensor itself
            tensor["data"] = list(_strings(rest[:size]))
        rest = rest[size:]
    if rest:
        raise RequestError("invalid_request", f"{len(rest)} bytes follow the last tensor", "inputs")
    return body


def _binary_size(tensor: Any) -> int | None:
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise RequestError("invalid_request", "binary_data_size must be a number of bytes", "inputs")
    return size


def _strings(raw: memoryview) -> Iterator[str]:
    """The elements of a BYTES tensor: each its length in four bytes, little-endian, and its bytes."""
    place = 0
    while place < len(raw):
        if place + 4 > len(raw):
            raise RequestError("invalid_request", "a binary tensor is cut off", "inputs")
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4
        if place + length > len(raw):
            raise RequestError("invalid_request", "a binary tensor is cut off", "inputs")
        try:
            yield str(raw[place : place + length], "utf-8")
        except UnicodeDecodeError:
            raise RequestError("invalid_encoding", "an element of a binary tensor is not UTF-8", "inputs") from None
        place += length


def model_metadata(name: str, platform: str, fields: Many[str]) -> dict[str, Any]:
    """``GET /v2/models/NAME``. ``fields``: of an input, by the names that tensors may have."""
    tensors = [{"name": field, "datatype": "BYTES", "shape": [-1]} for field in fields]
    output = {"name": "predictions", "datatype": "BYTES", "shape": [-1]}
    return {"name": name, "versions": [VERSION], "platform": platform, "inputs": tensors, "outputs": [output]}


def server_metadata() -> dict[str, Any]:
    """``GET /v2``."""
    return {"name": "efft", "version": VERSION, "extensions": ["binary_tensor_data"]}
