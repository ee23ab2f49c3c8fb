"""Messages and connections meant to hurt: what a stranger may send to a gRPC or TLS port."""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.e2e.grpc_api import PACKAGE, Api, prediction
from tests.e2e.test_hostile import KEYS, raw

METHODS = ("Predictions", "StreamPredictions", "StreamPredictions2", "Ping", "Explanations", "", "../management")
MODELS = ("ticket_routing", "document_qa", "", "nobody", "x" * 3000, "../../etc", "\u202e", "ticket_routing\n")
NAMES = (
    *KEYS,
    "Accept",
    "Content-Length",
    "describe",
    "explain",
    "url_path",
    "ts_stream_next",
    "ts_request_sequence_id",
)


def grpc_message(generator: random.Random) -> tuple[str, bytes]:
    """A method and the bytes sent to it: a message well made with odd content, one cut or changed, or noise."""
    method = generator.choice(METHODS[:2] if generator.random() < 0.8 else METHODS)
    kind = generator.randrange(10)
    if kind == 0:
        return method, generator.randbytes(generator.randrange(300))
    if kind == 1:
        return method, b"\x0a" + b"\xff" * generator.randrange(1, 12)  # a length that ends nowhere
    if kind == 2 and generator.random() < 0.05:
        return method, prediction("ticket_routing", {"body": b"x" * 7_000_000}).SerializeToString()
    inputs = {generator.choice(NAMES): raw(generator) for _ in range(generator.randrange(4))}
    if generator.random() < 0.7:
        inputs["body"] = raw(generator)
    fields = {name: generator.choice(("", "1.0", "9", "all")) for name in ("model_version", "sequence_id")[: kind % 3]}
    model = generator.choice(MODELS[:2] if kind > 4 else MODELS)
    sent = prediction(model, inputs, **fields).SerializeToString()
    if kind == 3 and sent:
        sent = sent[: generator.randrange(len(sent))]
    elif kind == 4 and sent:
        place = generator.randrange(len(sent))
        sent = sent[:place] + generator.randbytes(3) + sent[place:]
    return method, sent


def send_grpc(api: Api, generator: random.Random) -> str:
    """One message; what came back: ``OK`` with the bytes, or the status and its text."""
    method, sent = grpc_message(generator)
    seconds = 0.003 if generator.random() < 0.05 else 60.0
    call = api.channel.unary_stream(f"/{PACKAGE}.inference.InferenceAPIsService/{method}")
    try:
        parts = list(call(sent, metadata=api.metadata, timeout=seconds))
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"
    return "OK " + b"".join(parts).decode("utf-8", "replace")


@dataclass
class Target:
    """Where the abuses go: a port on this machine that speaks TLS, and what a valid request needs there."""

    port: int
    certificate: Path
    token: str

    def plain(self) -> socket.socket:
        """A TCP connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=8)

    def tls(self, protocol: str = "http/1.1") -> ssl.SSLSocket:
        """A TLS connection."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.set_alpn_protocols([protocol])
        return context.wrap_socket(self.plain(), server_hostname="localhost")

    def head(self, *lines: str, path: str = "/predictions/ticket_routing", method: str = "POST") -> bytes:
        """A request's head with the token and ``lines``."""
        first = f"{method} {path} HTTP/1.1"
        return "\r\n".join([first, "Host: x", f"Authorization: {self.token}", *lines, "", ""]).encode("latin-1")


def everything(connection: socket.socket, seconds: float = 8) -> bytes:
    """What is answered until the other side closes, at most for ``seconds``."""
    answer = b""
    end = time.monotonic() + seconds
    with suppress(OSError):
        while time.monotonic() < end:
            part = connection.recv(65536)
            if not part:
                break
            answer += part
    return answer


def _sent(target: Target, data: bytes, *, leave: bool = False) -> bytes:
    with target.tls() as connection, suppress(OSError):
        connection.sendall(data)
        return b"" if leave else everything(connection)
    return b""


def slow(target: Target, generator: random.Random) -> bytes:
    """A byte now and then: of the head, or of the body."""
    head = target.head("Content-Length: 50")
    begun = head[: generator.randrange(1, len(head))] if generator.random() < 0.7 else head + b"a"
    with target.tls() as connection, suppress(OSError):
        connection.sendall(begun)
        connection.settimeout(0.5)
        for _ in range(3):
            time.sleep(0.5)
            connection.sendall(b"a")
        return everything(connection, 4)
    return b""


def half(target: Target, generator: random.Random) -> bytes:
    """A request that ends before its end."""
    whole = target.head("Content-Length: 30") + b'{"text": "where is my parcel"}'
    return _sent(target, whole[: generator.randrange(len(whole))], leave=True)


def chunks(target: Target, generator: random.Random) -> bytes:
    """Lengths that are none, two at a time, or contradict each other."""
    coding = generator.choice(("chunked", "xchunked", "gzip, chunked", "chunked, identity", " chunked", "chunked\x0b"))
    size = generator.choice((b"zz", b"-1", b"fffffffffffffffff", b"5;" + b"a" * 300, b"5", b"", b"0x5", b"\n"))
    lines = [f"Transfer-Encoding: {coding}"]
    if generator.random() < 0.5:
        lines.append(f"Content-Length: {generator.choice(('0', '4', '-1', '5, 6', 'x', '99999999999999999999'))}")
    if generator.random() < 0.2:
        lines.append("Content-Length: 7")
    smuggled = target.head("describe: True", path="/models", method="GET")
    return _sent(target, target.head("Connection: close", *lines) + size + b"\r\nhello\r\n0\r\n\r\n" + smuggled)


def heads(target: Target, generator: random.Random) -> bytes:
    """Heads that are too large, too many, or no heads."""
    path = "/predictions/ticket_routing"
    forms: list[Callable[[], bytes]] = [
        lambda: target.head(f"X: {'x' * generator.randrange(7000, 60_000)}"),
        lambda: target.head(*(f"X-{n}: {'y' * 50}" for n in range(generator.randrange(100, 2000)))),
        lambda: target.head(path=path + "?" + "q" * generator.randrange(20_000)),
        lambda: target.head("X: a\x00b", "Content-Length: 1") + b"x",
        lambda: target.head("No colon here", ": no name", "X :space"),
        lambda: target.head(" folded: x", "\tfolded"),
        lambda: target.head(path="/predictions/../../models", method="GET"),
        lambda: target.head(path="/predictions/%00%0d%0aX:1"),
        lambda: target.head(path="http://127.0.0.1:8081/models", method="GET"),
        lambda: target.head(path="\xff\xfe", method="PRI"),
        lambda: target.head(method="G\x01T"),
        lambda: target.head("Expect: 100-continue", "Content-Length: 9999999"),
        lambda: target.head("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"),
        lambda: b"GET\r\n\r\n",
        lambda: b"\r\n" * 1000 + b"\x00" * 1000,
        lambda: generator.randbytes(generator.randrange(1, 5000)),
    ]
    return _sent(target, generator.choice(forms)())


def pipelined(target: Target, generator: random.Random) -> bytes:
    """Several requests in one go, good ones and a broken one behind them."""
    body = b"I was charged twice for the same order."
    request = target.head(f"Content-Length: {len(body)}") + body
    return _sent(target, request * generator.randrange(2, 8) + b"BROKEN\r\n\r\n")


def tls_noise(target: Target, generator: random.Random) -> bytes:
    """Bytes that are no TLS, a handshake cut short, or plain HTTP."""
    forms = (
        generator.randbytes(generator.randrange(1, 3000)),
        b"\x16\x03\x01" + generator.randbytes(2) + b"\x01" + generator.randbytes(200),
        b"\x16\x03\x01\x40\x00" + b"\x00" * 100,
        b"\x80\x2e\x01\x00\x02" + generator.randbytes(44),
        target.head(),
        b"",
    )
    with target.plain() as connection, suppress(OSError):
        connection.sendall(generator.choice(forms))
        connection.shutdown(socket.SHUT_WR)
        return everything(connection)
    return b""


def http2_noise(target: Target, generator: random.Random) -> bytes:
    """HTTP/2 frames that break its rules."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    frames = b""
    for _ in range(generator.randrange(1, 30)):
        payload = generator.randbytes(generator.randrange(60))
        kind, flags = bytes([generator.randrange(12)]), generator.randbytes(1)
        frames += len(payload).to_bytes(3, "big") + kind + flags + generator.randrange(8).to_bytes(4, "big") + payload
    with target.tls("h2") as connection, suppress(OSError):
        connection.sendall(preface + frames)
        connection.settimeout(1)
        return everything(connection, 2)
    return b""


ABUSES = (slow, half, chunks, heads, pipelined, tls_noise, http2_noise)
