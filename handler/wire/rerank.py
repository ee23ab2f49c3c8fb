"""``/rerank`` as Cohere and Jina have it: a query, documents, the best first.

Sources: Cohere's API reference, "Rerank" (v1 and v2); Jina's Reranker API. Where the two differ an answer holds the
keys of both: ``meta`` and ``id`` are Cohere's, ``model`` and ``usage`` Jina's; an error has its line as ``message`` and
``detail``.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence as Many
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from handler.config import Truncation, first_problem
from handler.decode import Call
from handler.errors import RequestError
from handler.problems import MESSAGE_LENGTH
from handler.schemas import RerankRequest
from handler.wire.base import Asked, HttpReply, Outcome, Protocol, View, encoded, json_body

OPTIONS = ("raw_scores", "prompt", "prompt_name", "truncation", "adapter")
"""Passed on to the task; this project's own."""


class Document(BaseModel):
    """A document with fields; without ``rank_fields`` its ``text`` is read."""

    model_config = ConfigDict(extra="allow")


class RerankBody(BaseModel):
    """The request's body."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    """May be left out where one rerank archive is served."""
    query: str
    documents: list[str | Document]
    top_n: Annotated[int, Field(gt=0)] | None = None
    return_documents: bool = False
    rank_fields: list[str] | None = None
    """Fields of documents that are objects, in the order in which they are read, one a line."""
    max_chunks_per_doc: int | None = None
    max_tokens_per_doc: int | None = None
    priority: int | None = None
    """These three are accepted, not used: a document is read as the archive's ``truncation`` says."""
    raw_scores: bool | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    truncation: Truncation | None = None
    adapter: str | None = None


class Rerank(Protocol):
    """A score for each document."""

    name = "rerank"
    task = "rerank"

    def read(self, asked: Asked, view: View) -> Call:
        """See Protocol.read."""
        self.check_task(view)
        body = _checked(json_body(asked, view.config.limits.max_body_bytes))
        texts = [_text(document, body.rank_fields, place) for place, document in enumerate(body.documents)]
        parameters = {name: value for name in OPTIONS if (value := getattr(body, name)) is not None}
        call = view.decoder.decode({"body": {"query": body.query, "texts": texts, **parameters}})
        call.options = {"body": body}
        return call

    def write(self, asked: Asked, call: Call, outcomes: Many[Outcome], view: View) -> HttpReply:
        """See Protocol.write."""
        (outcome,) = outcomes
        if isinstance(outcome.answer, RequestError):
            raise outcome.answer
        (request,) = call.items
        assert isinstance(request, RerankRequest)
        body: RerankBody = call.options["body"]
        results = [_result(found, body, request.texts) for found in outcome.answer["results"][: body.top_n]]
        payload = {
            "id": str(uuid.uuid4()),
            "model": view.name,
            "results": results,
            "meta": {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": outcome.tokens}},
            "usage": {"total_tokens": outcome.tokens},
        }
        return HttpReply(200, encoded(payload))

    def error(self, error: RequestError) -> Any:
        """See Protocol.error."""
        name, dot, place = (error.field or "").partition(".")
        where = ("documents" if name == "texts" else name) + dot + place
        message = f"{where}: {error.message}" if where else error.message
        return {"id": str(uuid.uuid4()), "message": message, "detail": message}


def _result(found: dict[str, Any], body: RerankBody, texts: list[str]) -> dict[str, Any]:
    result = {"index": found["index"], "relevance_score": found["score"]}
    if body.return_documents:
        document = body.documents[found["index"]]
        result["document"] = {"text": document} if isinstance(document, str) else document.model_dump()
    return result


def _text(document: str | Document, fields: list[str] | None, place: int) -> str:
    """What is read of a document. Raises RequestError."""
    if isinstance(document, str):
        return document
    values = document.model_extra or {}
    names = fields or ["text"]
    found = [values.get(name) for name in names]
    lines = [value for value in found if isinstance(value, str)]
    if len(lines) < (len(names) if fields is None else 1):
        wanted = "the field text" if fields is None else "one of the rank_fields"
        raise RequestError(
            "invalid_request", f"a document must be a text or an object with {wanted}", f"documents.{place}"
        )
    return "\n".join(lines)


def _checked(body: dict[str, Any]) -> RerankBody:
    """Raises RequestError in one line that names the key."""
    try:
        return RerankBody.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(
            str(part) for part in problem["loc"] if isinstance(part, int) or part in RerankBody.model_fields
        )
        if problem["type"] == "extra_forbidden":  # the key is the client's own words, so it is not repeated
            known = ", ".join(RerankBody.model_fields)
            raise RequestError("invalid_request", f"a key is unknown; known are {known}") from None
        if problem["type"] == "string_unicode":
            raise RequestError("invalid_encoding", "half of a surrogate pair", place) from None
        if place.startswith("documents."):
            raise RequestError("invalid_request", "a document must be a text or an object", place) from None
        message = first_problem(error).partition(": ")[2][:MESSAGE_LENGTH]
        raise RequestError("invalid_request", message, place or None) from None
