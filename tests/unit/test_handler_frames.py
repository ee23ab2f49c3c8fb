"""Frames read and written at once hold what TorchServe's own code reads and writes field by field."""

from __future__ import annotations

import json
import signal
import socket
import struct
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ts.context import Context, RequestProcessor
from ts.protocol import otf_message_handler as theirs

from handler import frames
from handler.frames import Reader, Writer

LOAD = b"L" + b"".join(
    struct.pack("!i", len(part)) + part if isinstance(part, bytes) else struct.pack("!i", part)
    for part in (b"name", b"/tmp/x", 8, b"service.py", -1, b"")
) + b"\x01"  # fmt: skip


def field(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


END = struct.pack("!i", -1)


def message(requests: list[tuple[dict[str, str], list[tuple[str, str, bytes]]]]) -> bytes:
    parts = [b"I"]
    for number, (headers, parameters) in enumerate(requests):
        parts.append(field(f"id-{number}".encode()))
        parts += [field(name.encode()) + field(value.encode()) for name, value in headers.items()]
        parts.append(END)
        parts += [field(name.encode()) + field(kind.encode()) + field(value) for name, kind, value in parameters]
        parts.append(END)
    return b"".join([*parts, END])


def read(reader: Any, data: bytes, pieces: int = 1) -> Any:
    """What a reader makes of bytes that arrive in so many pieces."""
    own, other = socket.socketpair()
    size = max(1, -(-len(data) // pieces))

    def send() -> None:
        for start in range(0, len(data), size):
            other.sendall(data[start : start + size])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return reader(own)
    finally:
        sender.join()
        own.close()
        other.close()


def plain(value: Any) -> Any:
    """Bytes alike, whichever of Python's types holds them."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return bytes(value) if isinstance(value, bytearray) else value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
bodies = st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode())
kinds = st.sampled_from(["", "application/json", "text/plain", "application/octet-stream"])
parameters = st.lists(st.tuples(st.sampled_from(["body", "text"]), kinds, bodies), max_size=2)
requests = st.lists(
    st.tuples(st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=4), parameters), max_size=4
)


@settings(max_examples=60, deadline=None)
@given(batch=requests, pieces=st.sampled_from([1, 2, 7, 50]), decodes=st.booleans())
def test_a_batch_is_what_torchserve_reads(batch: Any, pieces: int, decodes: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_DECODE_INPUT_REQUEST", "true" if decodes else "false")
        command, expected = read(theirs.retrieve_msg, message(batch))
    found = read(Reader(theirs.retrieve_msg, decodes=decodes), message(batch), pieces)
    assert found[0] == command == b"I"
    assert repr(plain(found[1])) == repr(plain(expected))  # NaN is not equal to itself


@pytest.mark.parametrize("length", [-2, -4, -9, -(2**31)])
@pytest.mark.parametrize("where", ["identity", "header", "body"])
def test_a_length_below_zero_is_an_empty_field_as_torchserve_has_it(length: int, where: str) -> None:
    parts = {
        "identity": [b"", END, END, END],
        "header": [field(b"id"), field(b"name"), b"", END, END, END],
        "body": [field(b"id"), END, field(b"body"), field(b""), b"", END, END],
    }[where]
    parts[parts.index(b"")] = struct.pack("!i", length)
    command, expected = read(theirs.retrieve_msg, b"".join([b"I", *parts]))

    def stop(*_: Any) -> None:
        raise TimeoutError("it reads the same bytes for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        found = read(Reader(theirs.retrieve_msg), b"".join([b"I", *parts]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert found[0] == command
    assert repr(plain(found[1])) == repr(plain(expected))


def test_a_load_goes_to_torchserves_own_code_and_batches_may_follow_at_once() -> None:
    reader = Reader(theirs.retrieve_msg)
    own, other = socket.socketpair()
    other.sendall(LOAD + message([({}, [("body", "", b"one")])]) + message([]))
    command, load = reader(own)
    assert (command, bytes(load["modelName"]), load["batchSize"]) == (b"L", b"name", 8)
    assert reader(own)[1][0]["parameters"][0]["value"] == b"one"
    assert reader(own) == (b"I", [])
    other.close()
    with pytest.raises(SystemExit):
        reader(own)
    own.close()


def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * 8000
    _, batch = read(Reader(theirs.retrieve_msg), message([({"a": "b"}, [("body", "", body)])] * 2), 40)
    assert [request["parameters"][0]["value"] for request in batch] == [body, body]


def answers(count: int) -> Context:
    made = Context("name", "", {}, 8, None, "0.12")
    made.request_ids = {index: f"id-{index}" for index in range(count)}
    made.request_processor = [RequestProcessor({}) for _ in range(count)]
    return made


@pytest.mark.parametrize("stream", [None, "true", "false"])
def test_answers_are_written_as_torchserve_writes_them(stream: str | None) -> None:
    def context() -> Context:
        made = answers(4)
        for index in range(3):
            made.set_response_content_type(index, "application/json")
        made.set_response_status(code=503, phrase="Service Unavailable", idx=1)
        made.set_response_header(1, "Retry-After", "1")
        if stream:
            made.set_response_header(2, "ts_stream_next", stream)
        return made

    bodies = [b'{"label": "a"}', b"", "é".encode(), b"\x00\xff"]
    ids = answers(4).request_ids
    expected = theirs.create_predict_response(bodies, ids, "Prediction success", 200, context=context())
    writer = Writer(theirs.create_predict_response)
    for _ in range(2):  # the second time from what it remembers
        assert writer(bodies, ids, "Prediction success", 200, context=context()) == bytes(expected)


def test_what_is_no_plain_batch_is_left_to_torchserve() -> None:
    writer = Writer(theirs.create_predict_response)
    ids = answers(1).request_ids
    for ret, context in ((None, None), ([{"a": 1}], answers(1)), (["text"], answers(1))):
        expected = theirs.create_predict_response(ret, ids, "m", 200, context=context)
        assert writer(ret, ids, "m", 200, context=context) == expected


def test_few_system_calls_for_many_requests() -> None:
    class Counted:
        def __init__(self, data: bytes) -> None:
            self.data, self.calls = data, 0

        def recv(self, most: int) -> bytes:
            self.calls += 1
            part, self.data = self.data[:most], self.data[most:]
            return part

    connection = Counted(message([({"Host": "x"}, [("body", "", b"a" * 300)])] * 64))
    assert len(Reader(theirs.retrieve_msg)(connection)[1]) == 64
    assert connection.calls == 1
    assert frames.CHUNK > 64 * 400
