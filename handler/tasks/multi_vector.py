"""A vector for each token of a text, and what a query's are worth beside a text's: late interaction.

ColBERT (Khattab and Zaharia, SIGIR 2020): a text's score is the sum, over the query's vectors, of each one's largest
product with a vector of the text (MaxSim). Lengths, expansion and left out tokens are sentence-transformers'.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np

from handler.archive import ArchiveFacts, MultiVectorFacts
from handler.config import SetupConfig, Truncation
from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import MultiVectorAnswer, MultiVectorRequest
from handler.tasks.base import Job, best, with_dropped
from handler.tasks.prompts import PromptedTask, prompt_of
from handler.tokenizer import Input, Sequence, Tokenized, Tokenizer

Role: TypeAlias = 'Literal["query", "document"] | None'
"""What a text is; None: a document of any length."""


@dataclass(slots=True)
class MultiVectorJob(Job[MultiVectorRequest]):
    """``counts``: how many sequences (windows) each text has, the query's first; ``roles``: of each sequence."""

    counts: list[int] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)


class MultiVectorEmbedding(PromptedTask[MultiVectorRequest]):
    """The model's output is vectors [S, D]; those of a text's windows stand one behind the other.

    A query is never read in windows: what it has too much is cut off.
    """

    request = MultiVectorRequest
    answer = MultiVectorAnswer
    per_token = True

    def __init__(self, facts: ArchiveFacts, config: SetupConfig, tokenizer: Tokenizer) -> None:
        super().__init__(facts, config, tokenizer)
        self.vectors = TokenVectors(facts.multi_vector or MultiVectorFacts())

    def input(self, request: MultiVectorRequest) -> Input:
        """The first text; see encode for all."""
        return self._texts(request)[0][0]

    def encode(self, requests: Many[MultiVectorRequest]) -> list[Job[MultiVectorRequest] | RequestError]:
        """All texts of all requests in one call of the tokenizer."""
        found = [self._texts_or_error(request) for request in requests]
        texts, policies, longest = [], [], []
        for request, own in zip(requests, found, strict=True):
            for text, role in own if isinstance(own, list) else ():
                texts.append(text)
                policies.append(self._policy(request, role))
                longest.append(self.vectors.longest(role))
        strides = [self.config.stride] * len(texts)
        tokenized = iter(self.tokenizer.encode(texts, policies, strides, longest=longest))
        return [
            self._joined(request, own, list(islice(tokenized, len(own)))) if isinstance(own, list) else own
            for request, own in zip(requests, found, strict=True)
        ]

    def _texts(self, request: MultiVectorRequest) -> list[tuple[str, Role]]:
        """Each text with its prompt, and what it is. Raises RequestError for an unknown prompt."""
        if request.texts is None or request.query is None:
            return [(prompt_of(request, self.facts) + (request.text or ""), request.input_type)]
        texts = [(prompt_of(request, self.facts, "query") + request.query, "query")]
        # A prompt that the request chooses is the query's, as it is of a cross-encoder.
        before = prompt_of(replace_prompt(request), self.facts, "document")
        return [*texts, *((before + text, "document") for text in request.texts)]  # type: ignore[list-item]

    def _texts_or_error(self, request: MultiVectorRequest) -> list[tuple[str, Role]] | RequestError:
        try:
            return self._texts(request)
        except RequestError as error:
            return error

    def _policy(self, request: MultiVectorRequest, role: Role) -> Truncation:
        policy = self.truncation(request)
        return "truncate" if role == "query" and policy == "stride" else policy

    def _joined(
        self, request: MultiVectorRequest, texts: list[tuple[str, Role]], results: list[Tokenized | RequestError]
    ) -> MultiVectorJob | RequestError:
        job = MultiVectorJob(request, [])
        for place, ((_, role), result) in enumerate(zip(texts, results, strict=True)):
            if isinstance(result, RequestError):
                name = "text" if request.texts is None else f"texts.{place - 1}" if place else "query"
                return RequestError(result.type, result.message, name)
            job.sequences += [self.vectors.expanded(sequence, role) for sequence in result.sequences]
            job.roles += [role] * len(result.sequences)
            job.counts.append(len(result.sequences))
            job.dropped += result.dropped
        return job

    def finish(self, job: Job[MultiVectorRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        assert isinstance(job, MultiVectorJob)
        sequences = zip(outputs, job.sequences, job.roles, strict=True)
        counted = iter([output[0][self.vectors.counted(sequence, role)] for output, sequence, role in sequences])
        texts = [np.concatenate(list(islice(counted, count))) for count in job.counts]
        request = job.request
        if request.texts is None:
            return with_dropped({"token_embeddings": texts[0]}, job)
        scores = np.array([self.vectors.score(texts[0], text) for text in texts[1:]])
        order = best(scores, len(scores)) if request.sort else range(len(scores))
        results: list[dict[str, Any]] = [{"index": i, "score": float(scores[i])} for i in order]
        if request.return_text:
            results = [{**result, "text": request.texts[result["index"]]} for result in results]
        return with_dropped({"results": results}, job)

    def present(self, answer: dict[str, Any], request: MultiVectorRequest, *, arrays: bool) -> dict[str, Any]:
        """See Task.present."""
        return with_lists(answer, arrays)


def with_lists(answer: dict[str, Any], arrays: bool) -> dict[str, Any]:
    """The answer's token vectors as lists, unless arrays may stay."""
    if arrays or "token_embeddings" not in answer:
        return answer
    return {**answer, "token_embeddings": answer["token_embeddings"].tolist()}


def replace_prompt(request: MultiVectorRequest) -> MultiVectorRequest:
    """The request without a choice of a prompt."""
    return request.model_copy(update={"prompt": None, "prompt_name": None})


class TokenVectors:
    """Which tokens have vectors, for tasks of which they are all or a part."""

    def __init__(self, facts: MultiVectorFacts) -> None:
        self._facts = facts
        self._skip = np.array(facts.skip, dtype=np.int64)

    def longest(self, role: Role) -> int | None:
        """The limit in tokens of such a text, where it has one of its own."""
        return {"query": self._facts.query_length, "document": self._facts.document_length}.get(role or "")

    def expanded(self, sequence: Sequence, role: Role) -> Sequence:
        """A query filled up with the model's tokens for that; any other text as it is."""
        expansion = self._facts.expansion
        missing = expansion.length - len(sequence.ids) if expansion and role == "query" else 0
        if expansion is None or missing <= 0:
            return sequence
        segments = None if sequence.segments is None else [*sequence.segments, *[0] * missing]
        ids = [*sequence.ids, *[expansion.token] * missing]
        return replace(sequence, ids=ids, segments=segments, unseen=0 if expansion.attend else missing)

    def counted(self, sequence: Sequence, role: Role) -> np.ndarray:
        """bool [S]: the tokens that have a vector."""
        ids = np.array(sequence.ids)
        skipped = len(self._skip) > 0 and (role or "document") in self._facts.skip_in
        found = ~np.isin(ids, self._skip) if skipped else np.ones(len(ids), dtype=bool)
        if self._facts.skip_first:
            found[0] = False
        return found

    def score(self, query: np.ndarray, text: np.ndarray) -> float:
        """MaxSim of a query's vectors [Q, D] and a text's [T, D]; 0 where either has none."""
        if not len(query) or not len(text):
            return 0.0
        largest = (query @ text.T).max(axis=1)
        return float(largest.mean() if self._facts.mean else largest.sum())
