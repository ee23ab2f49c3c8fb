"""Texts that a client has tokenized itself.

Ids say nothing of the vocabulary they are from. Clients made for OpenAI send those of its own tokenizers, which mean
other words here or none, and the vectors would be wrong without a word. So ids are taken where they begin and end with
this model's special tokens, as its tokenizer writes them and no other's does but by chance.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

from handler.errors import RequestError
from handler.schemas import EmbeddingRequest
from handler.tasks.adapted import chosen, unknown
from handler.tasks.base import Job
from handler.tasks.prompts import prompt_of
from handler.tokenizer import Sequence
from handler.wire.base import View


class TokenIdsRequest(EmbeddingRequest):
    """Ids to embed, checked and cut; ``text`` stands for nothing."""

    ids: list[int]
    dropped: int = 0

    def job(self) -> Job[EmbeddingRequest]:
        """What the tokenizer would have made of the text."""
        return Job(self, [Sequence(list(self.ids), adapter=self.adapter)], self.dropped)


def checked_ids(ids: Many[int], options: EmbeddingRequest, view: View) -> list[int]:
    """The ids, cut to the model's length where the request's truncation cuts. Raises RequestError."""
    if not chosen(options.adapter, view.facts.adapters):
        raise unknown(view.facts.adapters)
    if not ids:
        raise RequestError("empty", "the list of token ids is empty", "input")
    before, after = _special(view)
    most = view.tokenizer.max_length
    if len(ids) <= len(before) + len(after) or list(ids[: len(before)]) != before or _tail(ids, after) != after:
        own = f"begin with {before} and end with {after}"
        message = f"token ids must be of this model's own tokenizer, special tokens included ({own}); send the text"
        raise RequestError("invalid_request", message, "input")
    if min(ids) < 0 or max(ids) >= view.tokenizer.vocabulary_size:
        message = f"a token id is outside the vocabulary of {view.tokenizer.vocabulary_size}"
        raise RequestError("invalid_request", message, "input")
    if prompt_of(options, view.facts):
        message = 'a prompt goes before a text, not before token ids; send the text, or prompt ""'
        raise RequestError("unsupported", message, "prompt")
    if len(ids) <= most:
        return list(ids)
    policy = options.truncation or view.config.truncation or "truncate"
    if policy == "error":
        raise RequestError("too_long", f"{len(ids)} tokens, the model takes {most}", "input")
    if policy == "stride":
        raise RequestError("unsupported", "token ids are not read in windows; send the text", "truncation")
    inner = list(ids[len(before) : len(ids) - len(after)])
    room = most - len(before) - len(after)
    kept = inner[-room:] if view.facts.truncation_side == "left" else inner[:room]
    return [*before, *kept, *after]


def _tail(ids: Many[int], after: list[int]) -> list[int]:
    return list(ids[len(ids) - len(after) :])


def _special(view: View) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    encoding = view.tokenizer.backend.encode(".")
    mask = encoding.special_tokens_mask
    if 0 not in mask:
        return list(encoding.ids), []
    first = mask.index(0)
    last = len(mask) - mask[::-1].index(0)
    return list(encoding.ids[:first]), list(encoding.ids[last:])
