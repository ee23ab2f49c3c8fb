"""The errors a request can meet, one table of their HTTP codes, and the JSON body that reports them.

A message never repeats a text that the client sent, at most a misspelt field's name (handler.problems): bodies, logs
and metrics stay free of users' texts.
"""

from __future__ import annotations

import logging
import traceback
import uuid
from http import HTTPStatus
from typing import Any, Final

logger = logging.getLogger(__name__)

STATUS: Final[dict[str, int]] = {
    "invalid_json": 400,
    "invalid_encoding": 400,
    "empty": 400,
    "too_long": 400,
    "too_large": 413,
    "too_many": 413,
    "unsupported_media": 415,
    "invalid_request": 422,
    "unsupported": 422,
    "overloaded": 503,
    "internal": 500,
}
"""Every error type and its HTTP status code.

too_long: more tokens than the model takes, and truncation is "error". too_large: more characters than the config
allows. too_many: more inputs than the config allows. unsupported_media: a body in a form that is not read, such as
an unknown compression or charset. invalid_request: JSON of the wrong shape. unsupported: a valid
request for something this archive does not do.
"""


def first_line(error: BaseException) -> str:
    """What a library's exception says, without the lines that follow; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


FRAMES: Final = 12
"""Innermost frames of an internal error that the log shows."""


class RequestError(Exception):
    """A request, or one element of a list, that cannot be answered.

    ``type`` is a key of STATUS; ``message`` one line that says what to do; ``field`` the request's field to blame.
    """

    def __init__(self, type: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.type = type
        self.message = message
        self.field = field

    @property
    def status(self) -> int:
        """The HTTP status code."""
        return STATUS[self.type]

    @property
    def phrase(self) -> str:
        """The status code's standard phrase: plain ASCII, which TorchServe's wire format depends on."""
        return HTTPStatus(self.status).phrase

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"type": self.type, "message": self.message, "field": self.field}}


def is_panic(error: BaseException) -> bool:
    """Whether Rust code (the tokenizer) has panicked, which its binding reports outside Exception's tree."""
    return type(error).__name__ == "PanicException"


def internal_error(error: BaseException) -> RequestError:
    """Log an unexpected exception under a fresh id and return the error that carries the id.

    The exception's own message is left out of the log, as it may quote the request; its type and frames are enough
    to find the place.
    """
    identifier = uuid.uuid4().hex[:12]
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames[-FRAMES:]))
    logger.error("internal error %s: %s at %s", identifier, type(error).__name__, places)
    return RequestError("internal", f"internal error; its id in the server's log is {identifier}")
