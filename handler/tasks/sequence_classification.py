"""Labels for a text or a pair of texts: one of several, any of several, or a number."""

from __future__ import annotations

from typing import Any

import numpy as np

from handler.config import ScoreFunction
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
        logits = outputs[0][0] if len(outputs) == 1 else np.mean([output[0] for output in outputs], axis=0)
        scores = self.scores(logits, job.request.function_to_apply)
        count = job.request.top_k or self.config.top_k or (len(scores) if self._multi_label() else 0)
        first, *rest = ranked = best(scores, count or 1)
        answer: dict[str, Any] = {"label": self.facts.label(first), "score": float(scores[first])}
        if count and (rest or job.request.top_k):
            answer["labels"] = [{"label": self.facts.label(i), "score": float(scores[i])} for i in ranked]
        return with_dropped(answer, job)

    def scores(self, logits: np.ndarray, function: ScoreFunction | None = None) -> np.ndarray:
        """What ``function``, the request's, or the config's, or else :meth:`function` makes of the logits."""
        how = function or self.config.function_to_apply or self.function(len(logits))
        return {"none": _unchanged, "sigmoid": sigmoid, "softmax": softmax}[how](logits)

    def function(self, labels: int) -> ScoreFunction:
        """As transformers' text-classification pipeline: the problem type, else the number of labels, decides."""
        if self.facts.problem_type == "regression":
            return "none"
        return "sigmoid" if self._multi_label() or labels == 1 else "softmax"

    def _multi_label(self) -> bool:
        return self.facts.problem_type == "multi_label_classification"


def _unchanged(logits: np.ndarray) -> np.ndarray:
    return logits
