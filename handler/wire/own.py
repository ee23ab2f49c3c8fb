"""This project's own bodies, as TorchServe's addresses take and give them (docs/requests.md)."""

from __future__ import annotations

from collections.abc import Sequence as Many
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from handler.bodies import media_type
from handler.decode import Call
from handler.errors import RequestError
from handler.wire.base import Asked, HttpReply, Outcome, Protocol, View, encoded, first_error, placed


class Own(Protocol):
    """A lone input's error is the reply's; an error within a list stands in its place."""

    name = "own"

    def read(self, asked: Asked, view: View) -> Call:
        """See Protocol.read."""
        row, headers = row_of(asked)
        return view.decoder.decode(row, headers.get("content-type"), headers)

    def write(self, asked: Asked, call: Call, outcomes: Many[Outcome], view: View) -> HttpReply:
        """See Protocol.write."""
        failed = first_error(outcomes)
        if failed and not call.many:
            raise failed[1]
        return HttpReply(200, encoded(call.wrap(placed(outcomes))))

    def error(self, error: RequestError) -> Any:
        """See Protocol.error."""
        return error.body()


def row_of(asked: Asked) -> tuple[dict[str, Any], dict[str, Any]]:
    """A body as TorchServe would hand it to a worker: a row, and headers. Of a form in parts each part is an entry."""
    headers: dict[str, Any] = dict(asked.headers)
    stated = headers.get("content-type", "")
    if not isinstance(asked.body, bytes) or media_type(stated) != "multipart/form-data":
        return {"body": asked.body}, headers
    # Blanks in front of a header would continue the one before.
    head = f"content-type: {stated.strip()}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=HTTP).parsebytes(head + asked.body)
    row: dict[str, Any] = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str) and not part.is_multipart():
            row[name] = part.get_payload(decode=True)
            headers[name] = {"content-type": part.get("content-type", "")}
    if not row:
        raise RequestError("unsupported_media", "the body is no form in parts, whatever its type says")
    return row, headers
