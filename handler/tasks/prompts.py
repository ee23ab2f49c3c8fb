"""Texts that a model wants before what it reads: ``query: `` and the like, by sentence-transformers' rules."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Literal, TypeVar

from handler.archive import ArchiveFacts
from handler.errors import RequestError
from handler.schemas import PromptedRequest, RerankRequest, TextRequest
from handler.tasks.base import Job, Task
from handler.tokenizer import Input

_OF_INPUT_TYPE = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""The names that ``encode_query`` and ``encode_document`` of sentence-transformers look for, in order."""


def prompt_of(
    request: PromptedRequest | RerankRequest,
    facts: ArchiveFacts,
    input_type: Literal["query", "document"] | None = None,
) -> str:
    """The prompt that a request chooses (``prompt``, else ``prompt_name``, else ``input_type``), or the default one.

    ``input_type``: where the request's own is not asked for. Raises RequestError for a name that the model has no
    prompt of.
    """
    if request.prompt is not None:
        return request.prompt
    name = request.prompt_name
    if input_type is None and isinstance(request, PromptedRequest):
        input_type = request.input_type
    if name is None and input_type is not None:
        name = next((known for known in _OF_INPUT_TYPE[input_type] if known in facts.prompts), None)
    if name is None:
        name = facts.default_prompt_name
    if name is None:
        return ""
    if name not in facts.prompts:
        known = ", ".join(facts.prompts) or "none"
        raise RequestError("invalid_request", f"the model has no prompt of this name; it has: {known}", "prompt_name")
    return facts.prompts[name]


P = TypeVar("P", bound=PromptedRequest)


class PromptedTask(Task[P]):
    """A task of one text with a prompt before it."""

    def input(self, request: P) -> Input:
        """See Task.input."""
        assert isinstance(request, TextRequest)
        return prompt_of(request, self.facts) + request.text

    def encode(self, requests: Many[P]) -> list[Job[P] | RequestError]:
        """See Task.encode; a request with an unknown prompt is an error of its own."""
        found = [self.refused(request) for request in requests]
        jobs = iter(super().encode([r for r, error in zip(requests, found, strict=True) if error is None]))
        return [next(jobs) if error is None else error for error in found]

    def refused(self, request: P) -> RequestError | None:
        """What is wrong with the prompt that a request chooses."""
        try:
            prompt_of(request, self.facts)
        except RequestError as error:
            return error
        return None
