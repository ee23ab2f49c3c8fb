"""What all protocols share: a request as it came, a reply as it goes, and the way between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar

from handler import quick_json
from handler.archive import ArchiveFacts
from handler.bodies import Headers, decompressed, text_of
from handler.config import SetupConfig
from handler.decode import Call, Decoder, read_json
from handler.errors import RequestError
from handler.tokenizer import Tokenizer

RETRY_AFTER = "1"
"""Seconds after which a client may ask again where it is answered 503."""
JSON = "application/json"


class WireError(RequestError):
    """What goes wrong before a model is asked, with a status of its own: no such model, no such address, no key."""

    def __init__(self, status: HTTPStatus, type: str, message: str, field: str | None = None) -> None:
        super().__init__(type, message, field)
        self._status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._status, self.type, self.message, self.field)

    @property
    def status(self) -> int:
        """The HTTP status code."""
        return self._status.value


@dataclass(slots=True)
class Asked:
    """A request as it came. ``headers``: by lower-case name; ``body``: its bytes, or what JSON made of them."""

    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class HttpReply:
    """A reply as it goes."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """What became of one input: its answer (plain data, but that vectors may be numpy arrays) or its error, and the
    tokens that the model read for it."""

    answer: dict[str, Any] | RequestError
    tokens: int = 0


@dataclass(slots=True)
class View:
    """What a protocol may know of the model that is asked."""

    name: str
    facts: ArchiveFacts
    config: SetupConfig
    decoder: Decoder
    tokenizer: Tokenizer


class Protocol(ABC):
    """One protocol. ``task``: the only one it serves, None where it serves all."""

    name: ClassVar[str]
    task: ClassVar[str | None] = None

    @abstractmethod
    def read(self, asked: Asked, view: View) -> Call:
        """The inputs of a request, each valid or an error. Raises RequestError where it cannot be read as a whole."""

    @abstractmethod
    def write(self, asked: Asked, call: Call, outcomes: Many[Outcome], view: View) -> HttpReply:
        """The reply to a request that was read; an outcome for each of ``call.items``. Raises RequestError where the
        reply as a whole is an error."""

    @abstractmethod
    def error(self, error: RequestError) -> Any:
        """An error's body, of plain data."""

    def status(self, error: RequestError) -> int:
        """An error's HTTP status code."""
        return error.status

    def refusal(self, error: RequestError) -> HttpReply:
        """The reply that says an error."""
        status = self.status(error)
        headers = {"Retry-After": RETRY_AFTER} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
        return HttpReply(status, encoded(self.error(error)), headers=headers)

    def check_task(self, view: View) -> None:
        """Raises RequestError where the model is for another task than the protocol."""
        if self.task is not None and view.facts.task != self.task:
            raise RequestError("unsupported", f"this model's task is {view.facts.task}, not {self.task}", "model")


def encoded(payload: Any) -> bytes:
    """JSON, as every server here writes it; numpy arrays are lists."""
    return quick_json.dumps(payload)


def json_body(asked: Asked, limit: int) -> dict[str, Any]:
    """A body that must be a JSON object; ``limit``: its bytes once decompressed. Raises RequestError."""
    body = asked.body
    if isinstance(body, bytes):
        headers = Headers(asked.headers, JSON)
        text = text_of(decompressed(body, headers, limit), headers).removeprefix("\ufeff")
        if not text or text.isspace():
            raise RequestError("empty", "the body is empty")
        body = read_json(text)
    if not isinstance(body, dict):
        raise RequestError("invalid_request", "the body must be a JSON object")
    return body


def first_error(outcomes: Many[Outcome]) -> tuple[int, RequestError] | None:
    """The first input that has no answer, with its place; None where all have one."""
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome.answer, RequestError):
            return place, outcome.answer
    return None


def placed(outcomes: Many[Outcome]) -> list[Any]:
    """Answers, with an error's body in its input's place."""
    return [o.answer.body() if isinstance(o.answer, RequestError) else o.answer for o in outcomes]
