"""The bytes between TorchServe's front end and its worker: the same as its own code's, read and written at once.

TorchServe 0.12's worker asks the system for every length and every field of a request on its own, some 35 times for one
request, and packs an answer field by field. Here what has arrived is taken at once, and of an answer only what differs
from the last one is packed. Only the adapter (``handler.service``) knows where these two are put to use.

The layout is that of ``ts/protocol/otf_message_handler.py``: integers are four bytes, big-endian; a field is its length
and its bytes; a list ends with -1.
"""

from __future__ import annotations

import logging
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from handler import quick_json

logger = logging.getLogger(__name__)

INFERENCE: Final = b"I"
CHUNK: Final = 1 << 18
"""Bytes asked of the system at a time: more than a batch of short texts has."""
_END: Final = -1
_INT: Final = struct.Struct("!i")


class _Short(Exception):
    """The buffer ends before the request does; its argument is the length it must have at least."""


class Reader:
    """Stands in for TorchServe's ``retrieve_msg``: a connection -> (command, message), with one buffer a connection.

    ``original`` reads what is no inference (a worker is told to load its model once). ``decodes``: whether the front
    end's users want JSON and text decoded (TorchServe's TS_DECODE_INPUT_REQUEST).
    """

    def __init__(self, original: Callable[[Any], tuple[bytes, Any]], *, decodes: bool = True) -> None:
        self._original = original
        self._decodes = decodes
        self._connection: Any = None
        self._buffer = bytearray()

    def __call__(self, connection: Any) -> tuple[bytes, Any]:
        """The next message of a connection; ends the process where the front end has gone, as TorchServe's does."""
        if connection is not self._connection:
            self._connection, self._buffer = connection, bytearray()
        if not self._buffer:
            self._more(1)
        if self._buffer[:1] != INFERENCE:
            return self._original(self)
        del self._buffer[:1]
        return INFERENCE, self._batch()

    def recv(self, most: int) -> bytes:
        """For ``original``: bytes out of the buffer first."""
        if not self._buffer:
            self._more(1)
        taken = bytes(self._buffer[:most])
        del self._buffer[:most]
        return taken

    def _more(self, length: int) -> None:
        """Until the buffer has ``length`` bytes."""
        while (missing := length - len(self._buffer)) > 0:
            chunk = self._connection.recv(max(CHUNK, missing))
            if not chunk:
                logger.info("Frontend disconnected.")
                sys.exit(0)
            self._buffer += chunk

    def _batch(self) -> list[dict[str, Any]]:
        batch: list[dict[str, Any]] = []
        data, place = bytes(self._buffer), 0
        while True:
            try:
                request, place = self._request(data, place)
            except _Short as short:
                self._more(short.args[0])
                data = bytes(self._buffer)  # what was read before keeps its place
                continue
            if request is None:
                del self._buffer[:place]
                return batch
            batch.append(request)

    def _request(self, data: bytes, place: int) -> tuple[dict[str, Any] | None, int]:
        identity, place = _field(data, place)
        if identity is None:
            return None, place
        fields, place = _list(data, place, 2)
        headers = [{"name": name, "value": value} for name, value in zip(fields[::2], fields[1::2], strict=True)]
        fields, place = _list(data, place, 3)
        triples = zip(fields[::3], fields[1::3], fields[2::3], strict=True)
        return {
            "requestId": identity,
            "headers": headers,
            "parameters": [self._parameter(*one) for one in triples],
        }, place

    def _parameter(self, name: bytes, kind: bytes, value: bytes) -> dict[str, Any]:
        content_type = kind.decode()
        content: Any = value
        if self._decodes and (content_type == "application/json" or content_type.startswith("text")):
            try:
                text = value.decode()
                content = text if content_type.startswith("text") else quick_json.loads(text)
            except (ValueError, RecursionError):
                pass  # the handler says what is wrong with it
        return {"name": name.decode(), "contentType": content_type, "value": content}


def _field(data: bytes, place: int) -> tuple[bytes | None, int]:
    """A field and the place behind it; None for the end of a list. Raises _Short."""
    start = place + 4
    if len(data) < start:
        raise _Short(start)
    length = int.from_bytes(data[place:start], "big", signed=True)
    if length == _END:
        return None, start
    end = start + max(length, 0)  # what TorchServe's own code makes of others below 0
    if len(data) < end:
        raise _Short(end)
    return data[start:end], end


def _list(data: bytes, place: int, each: int) -> tuple[list[bytes], int]:
    """The fields of a list whose elements have ``each`` of them, of which only the first may end the list, and the
    place behind it. Raises _Short."""
    fields: list[bytes] = []
    size = len(data)
    while True:
        start = place + 4
        if size < start:
            raise _Short(start)
        (length,) = _INT.unpack_from(data, place)
        if length == _END:
            place = start
            if len(fields) % each == 0:
                return fields, place
            fields.append(b"")
            continue
        place = start + max(length, 0)  # as above: to go back would be to read the same bytes for ever
        if size < place:
            raise _Short(place)
        fields.append(data[start:place])


class Writer:
    """Stands in for TorchServe's ``create_predict_response`` where a batch was answered; ``original`` does the rest."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self._heads: dict[tuple[Any, ...], bytes] = {}

    def __call__(
        self,
        ret: Any,
        req_id_map: Mapping[int, str],
        message: str,
        code: int,
        context: Any = None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """The bytes of a batch's answers; for the arguments see TorchServe."""
        usual = isinstance(ret, list) and context is not None and not (rest or more) and not context.stopping_criteria
        if not usual or not all(isinstance(body, bytes) for body in ret):
            return self._original(ret, req_id_map, message, code, context, *rest, **more)
        text = message.encode()
        parts = [_INT.pack(code), _INT.pack(len(text)), text]
        for index, identity in req_id_map.items():
            own, body = identity.encode(), ret[index]
            parts += (_INT.pack(len(own)), own, self._head_of(context, index), _INT.pack(len(body)), body)
        parts.append(_INT.pack(_END))
        return b"".join(parts)

    def _head_of(self, context: Any, index: int) -> bytes:
        """Content type, status, phrase and headers; most answers have the same."""
        headers: Mapping[str, str] = context.get_response_headers(index)
        if headers.get("ts_stream_next") == "true":  # the last part of a stream that a handler began
            context.set_response_header(index, "ts_stream_next", "false")
        status, phrase = context.get_response_status(index)
        key = (status, phrase, *headers.items())
        head = self._heads.get(key)
        if head is None:
            head = _head(status, phrase, headers)
            if len(self._heads) < 256:
                self._heads[key] = head
        return head


def _head(status: int | None, phrase: str | None, headers: Mapping[str, str]) -> bytes:
    kind, reason = headers.get("content-type") or "", phrase or ""
    # TorchServe counts the characters of these two, which are ASCII.
    parts = [_INT.pack(len(kind)), kind.encode(), _INT.pack(200 if status is None else status)]
    parts += [_INT.pack(len(reason)), reason.encode(), _INT.pack(len(headers))]
    for field in (text.encode() for item in headers.items() for text in item):
        parts += [_INT.pack(len(field)), field]
    return b"".join(parts)
