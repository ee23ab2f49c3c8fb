"""Labels for a text or a pair of texts: one of several, any of several, or a number."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from handler.config import ScoreFunction
from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import ClassificationAnswer, ClassificationRequest
from handler.tasks.base import Job, Task, best, sigmoid, softmax, with_dropped
from handler.tokenizer import Input


class SequenceClassification(Task[ClassificationRequest]):
    """The model's output is logits [labels]; windows of one text vote by the mean of their logits."""

    request = ClassificationRequest
    answer = ClassificationAnswer

    def input(self, request: ClassificationRequest) -> Input:
        """See Task.input."""
        return request.text if request.text_pair is None else (request.text, request.text_pair)

    def finish(self, job: Job[ClassificationRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        scores = self.scores(_voted(outputs), job.request.function_to_apply)
        count = job.request.top_k or self.config.top_k or (len(scores) if self._multi_label() else 0)
        first, *rest = ranked = best(scores, count or 1)
        answer: dict[str, Any] = {"label": self.facts.label(first), "score": float(scores[first])}
        if count and (rest or job.request.top_k):
            answer["labels"] = [{"label": self.facts.label(i), "score": float(scores[i])} for i in ranked]
        return with_dropped(answer, job)

    def finish_all(
        self, jobs: Many[Job[ClassificationRequest]], outputs: Many[list[Arrays]]
    ) -> list[dict[str, Any] | RequestError]:
        """See Task.finish_all: one softmax and one search for all answers that are a label and its score."""
        config, multi = self.config, self._multi_label()
        special = config.top_k or multi or any(job.request.top_k or job.request.function_to_apply for job in jobs)
        if special or not jobs:
            return super().finish_all(jobs, outputs)
        if len(jobs) == 1:
            scores = self.scores(_voted(outputs[0]))
            first = int(scores.argmax())
            return [with_dropped({"label": self.facts.label(first), "score": float(scores[first])}, jobs[0])]
        logits = [_voted(own) for own in outputs]
        scores = self.scores(np.concatenate(logits).reshape(len(logits), -1))  # half of np.stack's time
        firsts = scores.argmax(axis=-1)  # of equal ones the first, as ``best`` has it
        highest = scores[np.arange(len(scores)), firsts].tolist()
        return [
            with_dropped({"label": self.facts.label(first), "score": score}, job)
            for first, score, job in zip(firsts.tolist(), highest, jobs, strict=True)
        ]

    def scores(self, logits: np.ndarray, function: ScoreFunction | None = None) -> np.ndarray:
        """What ``function``, the request's, or the config's, or else :meth:`function` makes of logits [..., labels]."""
        how = function or self.config.function_to_apply or self.function(logits.shape[-1])
        return {"none": _unchanged, "sigmoid": sigmoid, "softmax": softmax}[how](logits)

    def function(self, labels: int) -> ScoreFunction:
        """As transformers' text-classification pipeline: the problem type, else the number of labels, decides."""
        if self.facts.problem_type == "regression":
            return "none"
        return "sigmoid" if self._multi_label() or labels == 1 else "softmax"

    def _multi_label(self) -> bool:
        return self.facts.problem_type == "multi_label_classification"


def _voted(outputs: list[Arrays]) -> np.ndarray:
    """The logits [labels] of one text: those of its only window, or the mean of its windows'."""
    return outputs[0][0] if len(outputs) == 1 else np.mean([output[0] for output in outputs], axis=0)


def _unchanged(logits: np.ndarray) -> np.ndarray:
    return logits
