"""OpenAI's embeddings: ``POST /v1/embeddings`` and the list of models.

Source: OpenAI's API reference, "Create embeddings" and "List models" (platform.openai.com/docs/api-reference), and what
its Python client sends and reads: it asks for base64 unless told otherwise.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence as Many
from http import HTTPStatus
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from handler.config import Truncation, first_problem
from handler.decode import Call
from handler.errors import RequestError
from handler.problems import MESSAGE_LENGTH
from handler.schemas import EmbeddingRequest
from handler.wire.base import Asked, HttpReply, Outcome, Protocol, View, encoded, first_error, json_body
from handler.wire.token_ids import TokenIdsRequest, checked_ids

OPTIONS = ("dimensions", "prompt", "prompt_name", "input_type", "normalize", "truncation", "adapter")
"""Passed on to the task; all but the first are this project's own."""
_UNPROCESSABLE = 422


class EmbeddingsBody(BaseModel):
    """The request's body."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: str | list[str] | list[StrictInt] | list[list[StrictInt]]
    """A text, texts, or one or several texts as this model's token ids, special tokens included."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(gt=0)] | None = None
    user: str | None = None
    """Accepted, not used."""
    prompt: str | None = None
    prompt_name: str | None = None
    input_type: Literal["query", "document"] | None = None
    normalize: bool | None = None
    truncation: Truncation | None = None
    adapter: str | None = None


class Embeddings(Protocol):
    """A vector for each input. There are no errors for single inputs here: the first one's is the reply's."""

    name = "openai"
    task = "embedding"

    def read(self, asked: Asked, view: View) -> Call:
        """See Protocol.read."""
        self.check_task(view)
        body = _checked(json_body(asked, view.config.limits.max_body_bytes))
        parameters = {name: value for name in OPTIONS if (value := getattr(body, name)) is not None}
        inputs: list[Any] = [body.input] if isinstance(body.input, str) else body.input
        if inputs and isinstance(inputs[0], int):
            inputs = [inputs]
        if not inputs or isinstance(inputs[0], str):
            call = view.decoder.decode({"body": {"inputs": inputs, "parameters": parameters}})
        else:
            call = self._of_ids(inputs, parameters, view)
        call.options = {"base64": body.encoding_format == "base64"}
        return call

    def _of_ids(self, inputs: list[list[int]], parameters: dict[str, Any], view: View) -> Call:
        """Limits and options are checked on texts that stand in the ids' places."""
        call = view.decoder.decode({"body": {"inputs": ["."] * len(inputs), "parameters": parameters}})
        items: list[Any] = []
        for item, ids in zip(call.items, inputs, strict=True):
            try:
                if isinstance(item, RequestError):
                    raise item
                assert isinstance(item, EmbeddingRequest)
                kept = checked_ids(ids, item, view)
                items.append(TokenIdsRequest(**item.model_dump(), ids=kept, dropped=len(ids) - len(kept)))
            except RequestError as error:
                items.append(error)
        call.items = items
        return call

    def write(self, asked: Asked, call: Call, outcomes: Many[Outcome], view: View) -> HttpReply:
        """See Protocol.write."""
        if failed := first_error(outcomes):
            place, error = failed
            where = f"input {place}: " if len(outcomes) > 1 else ""
            raise RequestError(error.type, where + error.message, error.field)
        make = _base64 if call.options["base64"] else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": make(outcome.answer)}
            for index, outcome in enumerate(outcomes)
        ]
        tokens = sum(outcome.tokens for outcome in outcomes)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return HttpReply(200, encoded({"object": "list", "data": data, "model": view.name, "usage": usage}))

    def error(self, error: RequestError) -> Any:
        """See Protocol.error."""
        param = "input" if error.field in ("text", "inputs") else error.field
        kind = "server_error" if self.status(error) >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        return {"error": {"message": error.message, "type": kind, "param": param, "code": error.type}}

    def status(self, error: RequestError) -> int:
        """OpenAI answers 400 where a request is well-formed but wrong."""
        return HTTPStatus.BAD_REQUEST.value if error.status == _UNPROCESSABLE else error.status


def _checked(body: dict[str, Any]) -> EmbeddingsBody:
    """Raises RequestError in one line that names the key."""
    try:
        return EmbeddingsBody.model_validate(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = str(problem["loc"][0]) if problem["loc"] else None
    if problem["type"] == "extra_forbidden":  # the key is the client's own words, so it is not repeated
        known = ", ".join(EmbeddingsBody.model_fields)
        return RequestError("invalid_request", f"a key is unknown; known are {known}")
    if place == "input" and problem["type"] == "string_unicode":
        return RequestError("invalid_encoding", "input holds half of a surrogate pair", "input")
    if place == "input":
        message = "input must be a text, a list of texts, a list of token ids or a list of such lists"
        return RequestError("invalid_request", message, "input")
    return RequestError("invalid_request", first_problem(error)[:MESSAGE_LENGTH], place)


def _floats(answer: Any) -> Any:
    return answer["embedding"]


def _base64(answer: Any) -> Any:
    """The vector's float32, little-endian."""
    return base64.b64encode(np.asarray(answer["embedding"], dtype="<f4").tobytes()).decode()


def model_card(name: str, created: int) -> dict[str, Any]:
    """One entry of the list of models; KServe's version 1 asks for ``name`` and ``ready`` at the same address."""
    return {"id": name, "object": "model", "created": created, "owned_by": "efft", "name": name, "ready": True}
