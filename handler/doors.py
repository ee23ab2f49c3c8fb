"""What TorchServe's front end says of a request beside its body. (In a file of its own: TorchServe takes the only class
of an adapter's file for the adapter.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from handler.decode import BODY_KEYS

_SEQUENCE: Final = "ts_request_sequence_"
"""Begins the only headers that the front end makes up for a gRPC call (StreamPredictions2)."""


class Door:
    """What the front end says of one request: its headers, its body's type, and by which door it came."""

    __slots__ = ("content_type", "explained", "headers", "over_grpc")

    def __init__(self, headers: Mapping[str, Any]) -> None:
        self.headers = headers
        self.explained = headers.get("explain") == "True"
        self.content_type: str | None = None
        """Of the body, which TorchServe files under the parameter's name."""
        for key in BODY_KEYS:
            if isinstance(parameter := headers.get(key), Mapping):
                self.content_type = parameter.get("content-type")
                break
        self.over_grpc = True
        """A call by gRPC has no header, while the front end gives HTTP requests a content-length."""
        for key, value in headers.items():
            if isinstance(value, str) and not key.startswith(_SEQUENCE):
                self.over_grpc = False
                break
