"""A vector for a text."""

from __future__ import annotations

import base64
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

    A prompt stands before the text, thus in the first window only. Answers hold their vectors as arrays; see present.
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
        (answer,) = self.finish_all([job], [outputs])
        if isinstance(answer, RequestError):
            raise answer
        return answer

    def finish_all(self, jobs: Many[Job[E]], outputs: Many[list[Arrays]]) -> list[dict[str, Any] | RequestError]:
        """See Task.finish_all: norms of all vectors that are wanted alike in one go."""
        answers: list[dict[str, Any] | RequestError] = [{}] * len(jobs)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, job in enumerate(jobs):
            request = job.request
            groups.setdefault((request.normalize, request.dimensions, request.precision), []).append(place)
        for places in groups.values():
            rows = [_averaged(jobs[place], outputs[place]) for place in places]
            vectors = np.stack(rows) if len(rows) > 1 else rows[0][None]
            request = jobs[places[0]].request
            try:
                finished = quantised(self._shaped(vectors, request), request.precision)
            except RequestError as error:
                finished = [error] * len(places)
            for place, answer in zip(places, finished, strict=True):
                answers[place] = answer if isinstance(answer, RequestError) else with_dropped(answer, jobs[place])
        return answers

    def present(self, answer: dict[str, Any], request: E, *, arrays: bool) -> dict[str, Any]:
        """See Task.present: base64 of the vector's bytes where the request asks for it, else numbers."""
        vector = answer["embedding"]
        if request.encoding_format == "base64":
            return {**answer, "embedding": base64.b64encode(vector.astype(_little(vector.dtype))).decode("ascii")}
        if arrays and vector.dtype != np.float16:  # of fp16 not every JSON library writes the short form
            return answer
        return {**answer, "embedding": vector.tolist()}

    def of_windows(self, job: Job[E], outputs: list[Arrays]) -> dict[str, Any]:
        """A text's vector and what belongs to it, of its windows'. Raises RequestError for too many dimensions."""
        vector = self._shaped(_averaged(job, outputs)[None], job.request)
        answer: dict[str, Any] = quantised(vector, job.request.precision)[0]
        return answer

    def _shaped(self, vectors: np.ndarray, request: EmbeddingRequest) -> np.ndarray:
        """Normalised and cut, in sentence-transformers' order: as the model says, cut, again where asked for. [B, D]"""
        asked = self.config.normalize if request.normalize is None else request.normalize
        unit = self.facts.normalize if asked is None else asked
        width = vectors.shape[1]
        dimensions = request.dimensions or self.config.dimensions or self.facts.dimensions or width
        if dimensions > width:
            raise RequestError("invalid_request", f"the model has {width} dimensions", "dimensions")
        if unit and not self.facts.cut_first:
            vectors = _unit(vectors)
        vectors = vectors[:, :dimensions]
        return _unit(vectors) if unit and (self.facts.cut_first or asked) else vectors


def _averaged(job: Job[Any], outputs: list[Arrays]) -> np.ndarray:
    """The vector [D] of one text, fp32: its windows' mean by their tokens."""
    if len(outputs) == 1:
        return outputs[0][0].astype(np.float32, copy=False)
    weights = [len(sequence.ids) - sequence.prompt for sequence in job.sequences]
    return np.average([output[0] for output in outputs], axis=0, weights=weights).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return vectors / np.maximum(norms, TINY)[:, None]


def quantised(vectors: np.ndarray, precision: str | None) -> list[Any]:
    """Answers of vectors [B, D] in a precision; None: fp32 as they are.

    int8: by the vector's own largest magnitude, which ``scale`` times 127 gives back, so that cosines hardly change.
    binary, ubinary: a bit for each dimension, 1 where it is positive, as sentence-transformers' quantize_embeddings
    packs them.
    """
    if precision == "float16":
        vectors = vectors.astype(np.float16)
    elif precision == "int8":
        scales = np.maximum(np.abs(vectors).max(axis=1), TINY).astype(np.float32) / 127
        rounded = np.rint(vectors / scales[:, None]).astype(np.int8)
        return [{"embedding": row, "scale": float(scale)} for row, scale in zip(rounded, scales, strict=True)]
    elif precision in ("binary", "ubinary"):
        vectors = np.packbits(vectors > 0, axis=1)
        if precision == "binary":
            vectors = (vectors.astype(np.int16) - 128).astype(np.int8)
    return [{"embedding": row} for row in vectors]


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in little-endian order, whatever the machine's is."""
    return dtype.newbyteorder("<")
