"""KServe's Open Inference Protocol by gRPC (ModelInfer), as TorchServe's front end hands it over and wants it back.

It is switched on by ``ts_open_inference_protocol=true``. The front end turns the message into JSON with every string in
base64, and reads ``id``, ``model_name``, ``model_version`` and ``outputs`` out of the answer; where one is missing it
ends the worker. An error has no place there, so it goes back as a tensor named ``error``.

Source: KServe's Open Inference Protocol, version 2 (the messages ModelInferRequest and ModelInferResponse).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any


def is_model_infer(row: Mapping[str, Any]) -> bool:
    """Whether a gRPC call's row is a ModelInfer: the front end writes all three keys, whatever the client left out."""
    body = row.get("body")
    return isinstance(body, dict) and {"id", "model_name", "inputs"} <= set(body)


def decoded(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of a ModelInfer with its strings out of base64."""
    body = row["body"]
    tensors = body["inputs"]
    return {**row, "body": {**body, "inputs": [_tensor(tensor) for tensor in tensors]}} if tensors else row


def _tensor(tensor: Any) -> Any:
    if not isinstance(tensor, dict) or not isinstance(data := tensor.get("data"), list):
        return tensor
    if tensor.get("datatype") != "BYTES":
        return tensor
    return {**tensor, "data": [_text(value) for value in data]}


def _text(value: Any) -> str | None:
    """None, which no task takes, for bytes that are no text: the tensor's other elements keep their answers."""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, TypeError, ValueError):
        return None


def model_infer(payload: Any, row: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a ModelInferResponse, all of them: ``payload`` is a KServe v2 answer or an error's body."""
    asked = row["body"]
    about = (manifest or {}).get("model", {})
    if not isinstance(payload, dict) or "outputs" not in payload:
        data = [json.dumps(payload, ensure_ascii=False)]
        payload = {"outputs": [{"name": "error", "shape": [1], "datatype": "BYTES", "data": data}]}
    return {
        "id": str(asked.get("id") or ""),
        "model_name": str(asked.get("model_name") or about.get("modelName", "")),
        "model_version": str(about.get("modelVersion", "")),
        "outputs": payload["outputs"],
    }
