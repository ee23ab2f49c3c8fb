"""Which of the labels that a request brings are true of its text, by a classifier of natural language inference.

Each label makes a claim, and the model says whether it follows from the text (Yin, Hay, Roth, "Benchmarking Zero-shot
Text Classification", EMNLP 2019). Scores are those of transformers' zero-shot-classification pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import ZeroShotAnswer, ZeroShotRequest
from handler.tasks.base import Job, Task, best, softmax, with_dropped
from handler.tokenizer import Input, Tokenized


@dataclass(slots=True)
class ZeroShotJob(Job[ZeroShotRequest]):
    """``counts``: how many sequences (windows) the pair of each label has."""

    labels: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


class ZeroShotClassification(Task[ZeroShotRequest]):
    """The model's output is logits [labels of inference] of a text and a claim; windows of the text vote by their mean.

    The text is cut and never the claim.
    """

    request = ZeroShotRequest
    answer = ZeroShotAnswer

    def input(self, request: ZeroShotRequest) -> Input:
        """The first pair; see encode for all."""
        return self._pairs(request)[0]

    def encode(self, requests: Many[ZeroShotRequest]) -> list[Job[ZeroShotRequest] | RequestError]:
        """All pairs of all requests in one call of the tokenizer."""
        pairs = [self._pairs(request) for request in requests]
        policies = [self.truncation(r) for r, own in zip(requests, pairs, strict=True) for _ in own]
        strides = [self.stride(r) for r, own in zip(requests, pairs, strict=True) for _ in own]
        flat = [pair for own in pairs for pair in own]
        tokenized = iter(self.tokenizer.encode(flat, policies, strides, cut="first"))
        return [self._joined(r, list(islice(tokenized, len(own)))) for r, own in zip(requests, pairs, strict=True)]

    def _labels(self, request: ZeroShotRequest) -> list[str]:
        return request.candidate_labels or self.config.candidate_labels or []

    def _pairs(self, request: ZeroShotRequest) -> list[Input]:
        template = request.hypothesis_template or self.config.hypothesis_template
        return [(request.text, template.format(label)) for label in self._labels(request)]

    def _joined(self, request: ZeroShotRequest, results: list[Tokenized | RequestError]) -> ZeroShotJob | RequestError:
        if not results:
            return RequestError("invalid_request", "give the labels to choose from", "candidate_labels")
        job = ZeroShotJob(request, [], labels=self._labels(request))
        for place, result in enumerate(results):
            if isinstance(result, RequestError):
                claim = "second" in result.message and request.candidate_labels is not None
                return RequestError(result.type, result.message, f"candidate_labels.{place}" if claim else "text")
            job.sequences += result.sequences
            job.counts.append(len(result.sequences))
            job.dropped = max(job.dropped, result.dropped)
        return job

    def finish(self, job: Job[ZeroShotRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        assert isinstance(job, ZeroShotJob)
        several = job.request.multi_label
        windows = iter([output[0] for output in outputs])
        logits = np.stack([np.mean(list(islice(windows, count)), axis=0) for count in job.counts])
        scores = self.scores(logits, self.config.multi_label if several is None else several)
        order = best(scores, len(scores))
        return with_dropped(
            {"labels": [job.labels[i] for i in order], "scores": [float(scores[i]) for i in order]}, job
        )

    def scores(self, logits: np.ndarray, multi_label: bool) -> np.ndarray:
        """logits [candidates, labels of inference] -> [candidates].

        Of one candidate, or where several may be true: entailment against contradiction, which the pipeline takes for
        the first label, or the last where the first is entailment. Else entailment against the other candidates'.
        """
        entailment = self.facts.entailment
        assert entailment is not None
        if multi_label or len(logits) == 1:
            return softmax(logits[:, [-1 if entailment == 0 else 0, entailment]])[:, 1]
        return softmax(logits[:, entailment])
