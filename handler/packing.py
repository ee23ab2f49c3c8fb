"""Stage three and four: sequences of any requests are joined into passes, run, and put back in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Protocol, TypeAlias

import numpy as np
import torch

from handler.errors import RequestError, internal_error
from handler.metrics import Metrics
from handler.tokenizer import Sequence

Arrays: TypeAlias = "tuple[np.ndarray, ...]"
"""What the model says of one sequence: each output without the batch dimension, pads cut off."""
Keep: TypeAlias = "Callable[[Sequence, Arrays], Arrays]"
"""A sequence and its row of each output -> what is kept of them until the answers are made."""


class Model(Protocol):
    """ids, segments, mask: int64 [B, S] -> fp32 arrays that start with B (and S, for outputs per token)."""

    device: torch.device

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        """Run one pass."""


def plan_passes(lengths: Many[int], max_tokens: int) -> list[list[int]]:
    """Indices grouped into passes: like lengths together, rows times longest row at most ``max_tokens``.

    A single row longer than that gets a pass of its own.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    passes: list[list[int]] = []
    capacity = 0
    for index in order:
        if not passes or len(passes[-1]) >= capacity:
            passes.append([])
            capacity = max(1, max_tokens // max(1, lengths[index]))
        passes[-1].append(index)
    return passes


class Packer:
    """Runs a model over sequences of many requests under a token budget.

    ``keep`` takes what the task needs out of a row's outputs. ``packed``: the model computes no pads. Running out of
    memory splits a pass in two and goes on; only a sequence that does not fit alone fails, as overloaded.
    """

    def __init__(
        self, model: Model, *, pad_id: int, max_tokens: int, keep: Keep, packed: bool, metrics: Metrics
    ) -> None:
        self._model = model
        self._pad_id = pad_id
        self._max_tokens = max_tokens
        self._keep = keep
        self._packed = packed
        self._metrics = metrics

    def run(self, sequences: Many[Sequence], deadline: float = float("inf")) -> list[Arrays | RequestError]:
        """Each sequence's outputs, in the order given.

        No pass begins after ``deadline`` (of time.monotonic): what is left then fails as overloaded, so that a server
        does not take a busy worker for a dead one. Short sequences run first.
        """
        lengths = [len(sequence.ids) for sequence in sequences]
        late = RequestError("overloaded", "no time left for this input; try again or send less")
        results: list[Arrays | RequestError] = [late] * len(sequences)
        for indices in reversed(plan_passes(lengths, self._max_tokens)):
            if time.monotonic() > deadline:
                break
            outputs = self._run_pass([sequences[index] for index in indices])
            for index, output in zip(indices, outputs, strict=True):
                results[index] = output
        return results

    def _run_pass(self, sequences: Many[Sequence]) -> list[Arrays | RequestError]:
        ids, segments, mask = collate(sequences, self._pad_id)
        try:
            outputs = self._model(ids, segments, mask)
        except Exception as error:
            if not out_of_memory(error):
                failure = internal_error(error)
                return [failure] * len(sequences)
        else:
            self._count(ids, sequences)
            return self._rows(outputs, sequences)
        return self._split(sequences)

    def _split(self, sequences: Many[Sequence]) -> list[Arrays | RequestError]:
        """Outside the handler of the error, so that its frames no longer hold the failed pass's tensors."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._metrics.add("out_of_memory", 1)
        if len(sequences) == 1:
            return [RequestError("overloaded", "not enough memory for this input now; try again or send less")]
        middle = len(sequences) // 2
        return self._run_pass(sequences[:middle]) + self._run_pass(sequences[middle:])

    def _rows(self, outputs: Arrays, sequences: Many[Sequence]) -> list[Arrays | RequestError]:
        rows = [self._keep(sequence, tuple(output[i] for output in outputs)) for i, sequence in enumerate(sequences)]
        if sum(output.size for output in outputs) <= _SMALL and finite(outputs):  # one check is cheaper than many
            return list(rows)
        return [row if finite(row) else internal_error(FloatingPointError()) for row in rows]

    def _count(self, ids: np.ndarray, sequences: Many[Sequence]) -> None:
        tokens = sum(len(sequence.ids) for sequence in sequences)
        self._metrics.add("tokens", tokens)
        self._metrics.add("padding_avoided" if self._packed else "padding", ids.size - tokens)
        self._metrics.add("passes", 1)
        self._metrics.set("pass_tokens", tokens)


def collate(sequences: Many[Sequence], pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, segments, mask: int64 [B, S], padded on the right to the longest sequence.

    The mask is 1 on tokens, 2 on those that pooling leaves out, 0 on pads.
    """
    lengths = np.array([len(sequence.ids) for sequence in sequences])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    segments = np.zeros(mask.shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : lengths[row]] = sequence.ids
        mask[row, : sequence.prompt] = 2
        if sequence.segments is not None:
            segments[row, : lengths[row]] = sequence.segments
    return ids, segments, mask


def finite(arrays: Arrays) -> bool:
    """Neither infinite nor not-a-number anywhere."""
    return all(bool(np.isfinite(array).all()) for array in arrays)


_SMALL = 2**20
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cudamalloc",
    "bad_alloc",
    "alloc_failed",
    "cublaslt status 3",
)
"""What torch's allocators, cuBLAS and this project's own kernels say, in lower case."""


def out_of_memory(error: BaseException) -> bool:
    """Both devices' ways to say so: torch has an exception for CUDA only; the CPU allocator raises RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _NO_MEMORY)
