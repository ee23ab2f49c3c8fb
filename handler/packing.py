"""Stage three and four: sequences of any requests are joined into passes, run, and put back in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from collections.abc import Sequence as Many
from itertools import accumulate, chain, repeat
from typing import Any, Protocol, TypeAlias

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
    """ids, segments, mask: int64 [B, S] -> fp32 arrays that start with B (and S, for outputs per token).

    Or, where it has ``takes_packed`` and that is true, what :func:`join` makes: ids and segments [T] and offsets
    [B + 1] -> arrays that start with B, or T for outputs per token. It may have a ``vocabulary``, the rows of its word
    table; without it ids are not checked before a pass.
    """

    device: torch.device

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        """Run one pass."""


def plan_passes(lengths: Many[int], max_tokens: int, most_cells: int | None = None) -> list[list[int]]:
    """Indices grouped into passes: like lengths together, rows times longest row at most ``max_tokens``.

    ``most_cells``: where pads cost no arithmetic, only the tokens themselves count against ``max_tokens``, and rows
    times longest row may be this much, for the sake of the memory that ids take. A single row longer than the budget
    gets a pass of its own.
    """
    if len(lengths) <= 1:
        return [[0]] if lengths else []
    if max(lengths) * len(lengths) <= max_tokens:
        return [sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    passes: list[list[int]] = []
    capacity, tokens = 0, 0
    for index in order:
        tokens += lengths[index]
        if not passes or len(passes[-1]) >= capacity or (most_cells is not None and tokens > max_tokens):
            passes.append([])
            capacity, tokens = max(1, (most_cells or max_tokens) // max(1, lengths[index])), lengths[index]
        passes[-1].append(index)
    return passes


def grouped(names: Many[Hashable]) -> dict[Any, list[int]]:
    """The places of each name, by name, in order."""
    places: dict[Any, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return places


class Packer:
    """Runs a model over sequences of many requests under a token budget.

    ``keep`` takes what the task needs out of a row's outputs; None: all of it. ``packed``: the model computes no pads.
    ``vocabulary``: rows of the model's word table, None where that is not known. ``most_cells``: see plan_passes.
    ``per_token``: the outputs have a row per token, which matters where the model takes packed ids.
    ``adapters``: the models of sequences that name an adapter; a pass is of one of them.

    A pass that fails is split in two and tried again until what made it fail stands alone, so that an input costs no
    other input its answer. Alone it fails as overloaded where memory ran out and graphs held none of it, else as
    internal. Splitting takes at most one more time of the whole pass for each halving, log2 of its rows, and ends at
    the deadline. A device that has failed for good is not asked again: see ``lost``.
    """

    def __init__(
        self,
        model: Model,
        *,
        pad_id: int,
        max_tokens: int,
        keep: Keep | None,
        packed: bool,
        metrics: Metrics,
        vocabulary: int | None = None,
        most_cells: int | None = None,
        per_token: bool = False,
        adapters: Mapping[str, Model] | None = None,
    ) -> None:
        self._model = model
        self._adapters = adapters or {}
        self._joins: bool = getattr(model, "takes_packed", False)
        self._per_token = per_token
        self._most_cells = most_cells
        self._pad_id = pad_id
        self._max_tokens = max_tokens
        self._keep = keep
        self._packed = packed
        self._metrics = metrics
        self._vocabulary = vocabulary
        self.lost = False
        """Whether the device has failed in a way that only a new process mends."""

    def run(self, sequences: Many[Sequence], deadline: float = float("inf")) -> list[Arrays | RequestError]:
        """Each sequence's outputs, in the order given.

        No pass begins after ``deadline`` (of time.monotonic): what is left then fails as overloaded, so that a server
        does not take a busy worker for a dead one. Short sequences run first.
        """
        if len(sequences) == 1:
            return self._run_pass(sequences, deadline)
        lengths = [len(sequence.ids) for sequence in sequences]
        placed: list[tuple[int, Arrays | RequestError]] = []
        for indices in self._passes(sequences, lengths):
            placed += zip(indices, self._run_pass([sequences[index] for index in indices], deadline), strict=True)
        results: list[Any] = [None] * len(sequences)
        for index, output in placed:
            results[index] = output
        return results

    def _passes(self, sequences: Many[Sequence], lengths: list[int]) -> list[list[int]]:
        """Places of each pass, short sequences first."""
        if not self._adapters:
            return plan_passes(lengths, self._max_tokens, self._most_cells)[::-1]
        passes = []
        for places in grouped([sequence.adapter for sequence in sequences]).values():
            planned = plan_passes([lengths[place] for place in places], self._max_tokens, self._most_cells)
            passes += [[places[index] for index in indices] for indices in planned]
        return sorted(passes, key=lambda indices: max(lengths[index] for index in indices))

    def _model_of(self, sequences: Many[Sequence]) -> Model:
        """Of the sequences of one pass."""
        adapter = sequences[0].adapter
        return self._model if adapter is None else self._adapters.get(adapter, self._model)

    def _run_pass(self, sequences: Many[Sequence], deadline: float) -> list[Arrays | RequestError]:
        if self.lost or time.monotonic() > deadline:
            return [_lost() if self.lost else _late()] * len(sequences)
        failure: RequestError | None
        try:
            inputs = join(sequences) if self._joins else collate(sequences, self._pad_id)
            if self._vocabulary is not None and inputs[0].max() >= self._vocabulary:
                return self._without_unknown(sequences, deadline, self._vocabulary)
            outputs = self._model_of(sequences)(*inputs)
            self._count(sequences)
            return self._rows(outputs, sequences)
        except Exception as error:
            failure = self._failure(error, alone=len(sequences) == 1)
            memory = out_of_memory(error)
        # Outside the handler of the error, so that its frames no longer hold the failed pass's tensors.
        released = memory and len(sequences) == 1 and self._release_graphs()
        if memory and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if released:
            return self._run_pass(sequences, deadline)
        if failure is not None:
            return [failure] * len(sequences)
        middle = len(sequences) // 2
        return self._run_pass(sequences[:middle], deadline) + self._run_pass(sequences[middle:], deadline)

    def _without_unknown(
        self, sequences: Many[Sequence], deadline: float, vocabulary: int
    ) -> list[Arrays | RequestError]:
        """Ids that the word table has no row for are kept from the model: on a GPU they would take the device down."""
        known = [sequence for sequence in sequences if max(sequence.ids) < vocabulary]
        outputs = iter(self._run_pass(known, deadline) if known else [])
        message = f"a token of the text is unknown to the model, whose word table has {vocabulary} rows"
        refusal = RequestError("unsupported", f"{message}; the tokenizer and the checkpoint do not belong together")
        return [next(outputs) if max(sequence.ids) < vocabulary else refusal for sequence in sequences]

    def _failure(self, error: Exception, *, alone: bool) -> RequestError | None:
        """The error of all that was in a failed pass; None where a smaller pass may tell which of them it was."""
        memory = out_of_memory(error)
        self._metrics.add("out_of_memory" if memory else "failed_passes", 1)
        if not memory and self._device_lost():
            self.lost = True
            return internal_error(error)
        if not alone:
            return None
        if memory:
            return RequestError("overloaded", "not enough memory for this input now; try again or send less")
        return internal_error(error)

    def _release_graphs(self) -> bool:
        """Whether a model's graphs held memory, which no cache that is emptied gives back: it is free now."""
        graphs = [getattr(model, "graphs", None) for model in (self._model, *self._adapters.values())]
        return bool(sum(own.release() for own in graphs if own is not None))

    def _device_lost(self) -> bool:
        """Some errors of CUDA (a failed assertion, an illegal address) are reported by every later call as well."""
        device = getattr(self._model, "device", None)
        if device is None or device.type != "cuda":
            return False
        try:
            torch.cuda.synchronize(device)
        except Exception:
            return True
        return False

    def _rows(self, outputs: Arrays, sequences: Many[Sequence]) -> list[Arrays | RequestError]:
        whole = sum([output.size for output in outputs]) <= _SMALL and finite(outputs)  # one check is cheaper than many
        if whole and self._keep is None and all(len(output) == len(sequences) for output in outputs):
            return list(zip(*outputs, strict=True))
        places: Iterable[int | slice] = range(len(sequences))
        if self._joins and self._per_token:
            ends = accumulate(len(sequence.ids) for sequence in sequences)
            places = (slice(end - len(s.ids), end) for end, s in zip(ends, sequences, strict=True))
        return [
            self._row(outputs, place, sequence, checked=whole)
            for place, sequence in zip(places, sequences, strict=True)
        ]

    def _row(self, outputs: Arrays, place: int | slice, sequence: Sequence, *, checked: bool) -> Arrays | RequestError:
        try:
            row = tuple(output[place] for output in outputs)
            if self._keep is not None:
                row = self._keep(sequence, row)
        except Exception as error:
            return internal_error(error)
        return row if checked or finite(row) else internal_error(FloatingPointError())

    def _count(self, sequences: Many[Sequence]) -> None:
        lengths = [len(sequence.ids) for sequence in sequences]
        tokens, cells = sum(lengths), len(lengths) * max(lengths)
        self._metrics.add("tokens", tokens)
        self._metrics.add("padding_avoided" if self._packed else "padding", cells - tokens)
        self._metrics.add("passes", 1)
        self._metrics.observe("pass_tokens", tokens)
        self._metrics.observe("padding_share", 1 - tokens / cells)


def _late() -> RequestError:
    return RequestError("overloaded", "no time left for this input; try again or send less")


def _lost() -> RequestError:
    return RequestError("overloaded", "the device has failed and the worker is being replaced; try again")


def collate(sequences: Many[Sequence], pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, segments, mask: int64 [B, S], padded on the right to the longest sequence.

    The mask is 1 on tokens, 2 on those that pooling leaves out, 3 on those that no token attends to, 0 on pads.
    """
    sizes = [len(sequence.ids) for sequence in sequences]
    count = sum(sizes)
    lengths = np.array(sizes)
    valid = np.arange(lengths.max()) < lengths[:, None]
    mask = valid.astype(np.int64)
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    segments = np.zeros(mask.shape, dtype=np.int64)
    # All rows in one go: the valid places, row by row, are the tokens in their order.
    ids[valid] = _flat_ids(sequences, count)
    if any(sequence.segments is not None for sequence in sequences):
        segments[valid] = _flat_segments(sequences, count)
    for row, sequence in enumerate(sequences):
        if sequence.prompt:
            mask[row, : sequence.prompt] = 2
        if sequence.unseen:
            mask[row, sizes[row] - sequence.unseen : sizes[row]] = 3
    return ids, segments, mask


def join(sequences: Many[Sequence]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids and segments: int64 [T], one sequence behind the other; offsets: int64 [B + 1], the place of each one's first
    token, then T. There are no marks: a model that needs them takes no packed ids."""
    if len(sequences) == 1:
        (lone,) = sequences
        ids = np.array(lone.ids, dtype=np.int64)
        of_pair = None if lone.segments is None else np.array(lone.segments, dtype=np.int64)
        return ids, np.zeros_like(ids) if of_pair is None else of_pair, np.array([0, len(ids)], dtype=np.int64)
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence.ids) for sequence in sequences], out=offsets[1:])
    count = int(offsets[-1])
    plain = all(sequence.segments is None for sequence in sequences)
    segments = np.zeros(count, dtype=np.int64) if plain else _flat_segments(sequences, count)
    return _flat_ids(sequences, count), segments, offsets


def _flat_ids(sequences: Many[Sequence], count: int) -> np.ndarray:
    return np.fromiter(chain.from_iterable(sequence.ids for sequence in sequences), np.int64, count)


def _flat_segments(sequences: Many[Sequence], count: int) -> np.ndarray:
    parts = (sequence.segments or repeat(0, len(sequence.ids)) for sequence in sequences)
    return np.fromiter(chain.from_iterable(parts), np.int64, count)


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
