"""A vector for a text."""

from __future__ import annotations

from typing import Any

import numpy as np

from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import EmbeddingAnswer, EmbeddingRequest
from handler.tasks.base import Job, Task, with_dropped
from handler.tokenizer import Input

TINY = 1e-12
"""Keeps the norm of a zero vector from dividing by zero, as torch.nn.functional.normalize does."""


class Embedding(Task[EmbeddingRequest]):
    """The model's output is a pooled vector [H]; windows of one text are averaged by their tokens."""

    request = EmbeddingRequest
    answer = EmbeddingAnswer

    def input(self, request: EmbeddingRequest) -> Input:
        """See Task.input."""
        return request.text

    def finish(self, job: Job[EmbeddingRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        request = job.request
        weights = [len(sequence.ids) for sequence in job.sequences]
        vector = np.average([output[0] for output in outputs], axis=0, weights=weights).astype(np.float32)
        dimensions = request.dimensions or self.config.dimensions or len(vector)
        if dimensions > len(vector):
            raise RequestError("invalid_request", f"the model has {len(vector)} dimensions", "dimensions")
        vector = vector[:dimensions]
        if self.facts.normalize if request.normalize is None else request.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), TINY)
        return with_dropped({"embedding": vector.tolist()}, job)
