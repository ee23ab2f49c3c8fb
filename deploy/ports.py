"""Which ports a server listens on, and whether they are free: Java takes seconds to say no, and a trace."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

COUNT = 5
"""Inference, management, metrics, and gRPC's inference and management."""
_STEP = 1000
_HTTP = ("inference", "management", "metrics")
_GRPC = {"inference": "7070", "management": "7071"}
"""TorchServe's own."""


def addresses(config: str) -> dict[str, tuple[str, int]]:
    """Host and port of each of a config.properties' addresses, those of gRPC as ``grpc_inference`` and
    ``grpc_management``; what is no host and port (a Unix socket, a mistake) is left to TorchServe."""
    pairs = (line.partition("=") for line in config.splitlines() if not line.lstrip().startswith("#"))
    values = {key.strip(): value.strip() for key, _, value in pairs}
    found = {}
    for name in _HTTP:
        try:
            address = urlsplit(values.get(f"{name}_address", ""))
            if address.hostname and address.port:
                found[name] = (address.hostname, address.port)
        except ValueError:
            continue
    for name, port in _GRPC.items():
        text = values.get(f"grpc_{name}_port", port)
        if text.isdecimal() and int(text) < 2**16:
            found[f"grpc_{name}"] = (values.get(f"grpc_{name}_address", "127.0.0.1"), int(text))
    return found


def taken(wanted: Iterable[tuple[str, int]]) -> int | None:
    """The first port that another process listens on, None where all are free."""
    for host, port in wanted:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As Java does: connections of a server that has ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return port
    return None


def suggestion(port: int) -> int | None:
    """The first of ``COUNT`` ports on this machine that are free in a row, a thousand or more beyond ``port``."""
    for first in range(port + _STEP, 2**16 - COUNT, _STEP):
        if taken(("127.0.0.1", first + more) for more in range(COUNT)) is None:
            return first
    return None
