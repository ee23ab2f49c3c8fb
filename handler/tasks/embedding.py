"""A vector for a text."""

from __future__ import annotations

from collections.abc import Sequence as Many
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import numpy as np

from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import Answer, EmbeddingAnswer, EmbeddingRequest
from handler.tasks.base import Job, with_dropped
from handler.tasks.prompts import PromptedTask, prompt_of
from handler.tokenizer import Tokenizer

TINY = 1e-12
"""Keeps the norm of a zero vector from dividing by zero, as torch.nn.functional.normalize does."""


E = TypeVar("E", bound=EmbeddingRequest)


class Embedding(PromptedTask[E]):
    """The model's output is a pooled vector [D]; windows of one text are averaged by their tokens.

    A prompt stands before the text, thus in the first window only.
    """

    request = EmbeddingRequest
    answer: ClassVar[type[Answer]] = EmbeddingAnswer

    def __init__(self, facts: ArchiveFacts, config: SetupConfig, tokenizer: Tokenizer) -> None:
        super().__init__(facts, config, tokenizer)
        self._prompt_length = lru_cache(256)(tokenizer.prompt_length)

    def encode(self, requests: Many[E]) -> list[Job[E] | RequestError]:
        """See Task.encode."""
        return [self._marked(job) for job in super().encode(requests)]

    def _marked(self, job: Job[E] | RequestError) -> Job[E] | RequestError:
        """The job, with the prompt's tokens marked where the model's pooling leaves them out."""
        if self.facts.include_prompt or isinstance(job, RequestError):
            return job
        prompt = prompt_of(job.request, self.facts)
        if prompt:
            first = job.sequences[0]
            first.prompt = self._prompt_length(prompt)
            if first.prompt >= len(first.ids):
                return RequestError("too_long", "the prompt leaves no room for the text", "prompt")
        return job

    def finish(self, job: Job[E], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        return with_dropped({"embedding": self.vector(job, [output[0] for output in outputs]).tolist()}, job)

    def vector(self, job: Job[E], pooled: list[np.ndarray]) -> np.ndarray:
        """A text's vector of those [D] of its windows. Raises RequestError for more dimensions than there are."""
        weights = [len(sequence.ids) - sequence.prompt for sequence in job.sequences]
        return self._shaped(np.average(pooled, axis=0, weights=weights).astype(np.float32), job.request)

    def _shaped(self, vector: np.ndarray, request: EmbeddingRequest) -> np.ndarray:
        """Normalised and cut, in sentence-transformers' order: as the model says, cut, again where asked for."""
        asked = self.config.normalize if request.normalize is None else request.normalize
        unit = self.facts.normalize if asked is None else asked
        dimensions = request.dimensions or self.config.dimensions or self.facts.dimensions or len(vector)
        if dimensions > len(vector):
            raise RequestError("invalid_request", f"the model has {len(vector)} dimensions", "dimensions")
        if unit and not self.facts.cut_first:
            vector = _unit(vector)
        vector = vector[:dimensions]
        return _unit(vector) if unit and (self.facts.cut_first or asked) else vector


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), TINY)
