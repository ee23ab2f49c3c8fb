"""Texts that a model wants before what it reads: ``query: `` and the like, by sentence-transformers' rules."""

from __future__ import annotations

from handler.archive import ArchiveFacts
from handler.errors import RequestError
from handler.schemas import EmbeddingRequest, RerankRequest

_OF_INPUT_TYPE = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""The names that ``encode_query`` and ``encode_document`` of sentence-transformers look for, in order."""


def prompt_of(request: EmbeddingRequest | RerankRequest, facts: ArchiveFacts) -> str:
    """The prompt that a request chooses (``prompt``, else ``prompt_name``, else ``input_type``), or the default one.

    Raises RequestError for a name that the model has no prompt of.
    """
    if request.prompt is not None:
        return request.prompt
    name = request.prompt_name
    if name is None and isinstance(request, EmbeddingRequest) and request.input_type is not None:
        name = next((known for known in _OF_INPUT_TYPE[request.input_type] if known in facts.prompts), None)
    if name is None:
        name = facts.default_prompt_name
    if name is None:
        return ""
    if name not in facts.prompts:
        known = ", ".join(facts.prompts) or "none"
        raise RequestError("invalid_request", f"the model has no prompt of this name; it has: {known}", "prompt_name")
    return facts.prompts[name]
