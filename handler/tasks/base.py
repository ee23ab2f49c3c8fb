"""What a task is: texts in, sequences out; the model's outputs in, an answer out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from handler.archive import ArchiveFacts
from handler.config import SetupConfig, Truncation
from handler.errors import RequestError, internal_error
from handler.packing import Arrays
from handler.schemas import Answer, Request
from handler.tokenizer import Input, Sequence, Tokenized, Tokenizer

R = TypeVar("R", bound=Request)
V = TypeVar("V")


@dataclass(slots=True)
class Job(Generic[R]):
    """One input on its way: its request and the sequences that answer it."""

    request: R
    sequences: list[Sequence]
    dropped: int = 0


class Each(Generic[V]):
    """What a function says of each of several requests; it is asked only for those that matter."""

    __slots__ = ("_function", "_requests")

    def __init__(self, function: Callable[[Any], V], requests: Many[Any]) -> None:
        self._function = function
        self._requests = requests

    def __getitem__(self, place: int) -> V:
        return self._function(self._requests[place])


class Task(ABC, Generic[R]):
    """One task of an archive. ``per_token``: the model's outputs have a row per token."""

    request: ClassVar[type[Request]]
    answer: ClassVar[type[Answer]]
    per_token: ClassVar[bool] = False
    offsets: ClassVar[bool] = False
    default_truncation: ClassVar[Truncation] = "truncate"

    def __init__(self, facts: ArchiveFacts, config: SetupConfig, tokenizer: Tokenizer) -> None:
        self.facts = facts
        self.config = config
        self.tokenizer = tokenizer

    def encode(self, requests: Many[R]) -> list[Job[R] | RequestError]:
        """Tokenize a batch of requests in one call of the tokenizer."""
        policies, strides = Each(self.truncation, requests), Each(self.stride, requests)
        inputs = [self.input(request) for request in requests]
        tokenized = self.tokenizer.encode(inputs, policies, strides, offsets=self.offsets)
        return [self._job(request, result) for request, result in zip(requests, tokenized, strict=True)]

    @abstractmethod
    def input(self, request: R) -> Input:
        """The text or pair of a request."""

    @abstractmethod
    def finish(self, job: Job[R], outputs: list[Arrays]) -> dict[str, Any]:
        """The answer, from the outputs of each of the job's sequences."""

    def finish_all(self, jobs: Many[Job[R]], outputs: Many[list[Arrays]]) -> list[dict[str, Any] | RequestError]:
        """The answers of a batch, an error where one cannot be made; tasks whose answers can be computed for a whole
        batch at once do so."""
        return [self._finished(job, own) for job, own in zip(jobs, outputs, strict=True)]

    def present(self, answer: dict[str, Any], request: R, *, arrays: bool) -> dict[str, Any]:
        """An answer as plain data; ``arrays``: whether numpy's may stay in it."""
        return answer

    def _finished(self, job: Job[R], outputs: list[Arrays]) -> dict[str, Any] | RequestError:
        try:
            return self.finish(job, outputs)
        except RequestError as error:
            return error
        except Exception as error:
            return internal_error(error)

    def keep(self, sequence: Sequence, outputs: Arrays) -> Arrays:
        """What ``finish`` needs of one sequence's outputs: without pads, and small, as a whole batch waits for it."""
        if not self.per_token:
            return outputs
        return tuple(output[: len(sequence.ids)] for output in outputs)

    @property
    def keeps_all(self) -> bool:
        """Whether :meth:`keep` leaves a sequence's outputs as they are."""
        return not self.per_token and type(self).keep is Task.keep

    def pass_tokens(self, budget: int) -> int:
        """The token budget of one pass; tasks with large outputs lower it."""
        return budget

    def truncation(self, request: Request) -> Truncation:
        """The request's own choice, else the config's, else the task's."""
        return request.truncation or self.config.truncation or self.default_truncation

    def stride(self, request: Request) -> int:
        """Tokens that neighbouring windows of the request share."""
        return self.config.stride

    def _job(self, request: R, result: Tokenized | RequestError) -> Job[R] | RequestError:
        if isinstance(result, RequestError):
            return result
        return Job(request, result.sequences, result.dropped)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension."""
    # The ufuncs' own reductions: an array's methods are Python around them, which costs a lone text as much again.
    exponentials = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    return exponentials / np.add.reduce(exponentials, axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Without overflow for large negative values."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def best(scores: np.ndarray, count: int) -> list[int]:
    """Indices of the ``count`` largest scores, best first; equal scores keep their order."""
    if count < len(scores):
        among = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
        return among[np.argsort(-scores[among], kind="stable")][:count].tolist()
    return np.argsort(-scores, kind="stable").tolist()


def with_dropped(answer: dict[str, Any], job: Job[Any]) -> dict[str, Any]:
    """The answer, with the number of tokens cut off, if any."""
    if job.dropped:
        answer["dropped_tokens"] = job.dropped
    return answer
