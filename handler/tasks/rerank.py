"""How well each of a list of texts answers a query."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from handler.config import Truncation
from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import RerankAnswer, RerankRequest
from handler.tasks.base import Job, Task, best, sigmoid, softmax, with_dropped
from handler.tasks.prompts import prompt_of
from handler.tokenizer import Input, Tokenized


@dataclass(slots=True)
class RerankJob(Job[RerankRequest]):
    """``counts``: how many sequences (windows) each text has."""

    counts: list[int] = field(default_factory=list)


class Rerank(Task[RerankRequest]):
    """The model's output is logits [labels] of a pair: one label's by the checkpoint's activation, or the last label's
    probability. A prompt stands before the query.

    A text longer than the model is worth its best window (MaxP; Dai and Callan, "Deeper Text Understanding for IR",
    SIGIR 2019) where the truncation is "stride".
    """

    request = RerankRequest
    answer = RerankAnswer

    def input(self, request: RerankRequest) -> Input:
        """The first pair; see encode for all."""
        return prompt_of(request, self.facts) + request.query, request.texts[0]

    def encode(self, requests: Many[RerankRequest]) -> list[Job[RerankRequest] | RequestError]:
        """All pairs of all requests in one call of the tokenizer."""
        queries = [self._query(request) for request in requests]
        pairs: list[Input] = []
        policies: list[Truncation] = []
        for request, query in zip(requests, queries, strict=True):
            if isinstance(query, str):
                pairs += [(query, text) for text in request.texts]
                policies += [self.truncation(request)] * len(request.texts)
        tokenized = iter(self.tokenizer.encode(pairs, policies, [self.config.stride] * len(pairs)))
        return [
            self._joined(request, list(islice(tokenized, len(request.texts)))) if isinstance(query, str) else query
            for request, query in zip(requests, queries, strict=True)
        ]

    def _query(self, request: RerankRequest) -> str | RequestError:
        try:
            return prompt_of(request, self.facts) + request.query
        except RequestError as error:
            return error

    def _joined(self, request: RerankRequest, results: list[Tokenized | RequestError]) -> RerankJob | RequestError:
        job = RerankJob(request, [])
        for place, result in enumerate(results):
            if isinstance(result, RequestError):
                return RequestError(result.type, result.message, f"texts.{place}")
            job.sequences += result.sequences
            job.counts.append(len(result.sequences))
            job.dropped += result.dropped
        return job

    def finish(self, job: Job[RerankRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        assert isinstance(job, RerankJob)
        request = job.request
        of_windows = iter([self._score(output[0], request.raw_scores) for output in outputs])
        scores = np.array([max(islice(of_windows, count)) for count in job.counts])
        order = best(scores, len(scores)) if request.sort else range(len(scores))
        results: list[dict[str, Any]] = [{"index": i, "score": float(scores[i])} for i in order]
        if request.return_text:
            results = [{**result, "text": request.texts[result["index"]]} for result in results]
        return with_dropped({"results": results}, job)

    def _score(self, logits: np.ndarray, raw: bool) -> float:
        if raw or self.facts.activation == "identity":
            return float(logits[-1])
        if len(logits) > 1:
            return float(softmax(logits)[-1])
        return float(np.tanh(logits[0]) if self.facts.activation == "tanh" else sigmoid(logits)[0])
