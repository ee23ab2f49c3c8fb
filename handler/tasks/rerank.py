"""How well each of a list of texts answers a query."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import RerankAnswer, RerankRequest
from handler.tasks.base import Job, Task, best, sigmoid, softmax, with_dropped
from handler.tokenizer import Input, Tokenized


@dataclass(slots=True)
class RerankJob(Job[RerankRequest]):
    """``counts``: how many sequences (windows) each text has."""

    counts: list[int] = field(default_factory=list)


class Rerank(Task[RerankRequest]):
    """The model's output is logits [labels] of a pair: one label's sigmoid, or the last label's probability.

    A text longer than the model is worth its best window (MaxP; Dai and Callan, "Deeper Text Understanding for IR",
    SIGIR 2019) where the truncation is "stride".
    """

    request = RerankRequest
    answer = RerankAnswer

    def input(self, request: RerankRequest) -> Input:
        """The first pair; see encode for all."""
        return request.query, request.texts[0]

    def encode(self, requests: Many[RerankRequest]) -> list[Job[RerankRequest] | RequestError]:
        """All pairs of all requests in one call of the tokenizer."""
        pairs: list[Input] = [(request.query, text) for request in requests for text in request.texts]
        policies = [self.truncation(request) for request in requests for _ in request.texts]
        tokenized = iter(self.tokenizer.encode(pairs, policies, [self.config.stride] * len(pairs)))
        return [self._joined(request, list(islice(tokenized, len(request.texts)))) for request in requests]

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
        of_windows = iter([self._score(output[0]) for output in outputs])
        scores = np.array([max(islice(of_windows, count)) for count in job.counts])
        order = best(scores, len(scores)) if job.request.sort else range(len(scores))
        return with_dropped({"results": [{"index": i, "score": float(scores[i])} for i in order]}, job)

    @staticmethod
    def _score(logits: np.ndarray) -> float:
        return float(sigmoid(logits)[0] if len(logits) == 1 else softmax(logits)[-1])
