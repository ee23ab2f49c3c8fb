"""Passes under a token budget, and what happens when memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import RequestError
from handler.metrics import Metrics
from handler.packing import Arrays, Packer, collate, out_of_memory, plan_passes
from handler.tokenizer import Sequence


class Limited:
    """Sums a row's ids; has memory for ``cells`` cells."""

    device = torch.device("cpu")

    def __init__(self, cells: int, error: Exception | None = None) -> None:
        self.cells = cells
        self.error = error or RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        if ids.size > self.cells:
            raise self.error
        self.shapes.append(ids.shape)
        return ((ids * mask).sum(1, keepdims=True).astype(np.float32), ids.astype(np.float32))


def sequences(*lengths: int) -> list[Sequence]:
    return [Sequence(list(range(1, length + 1))) for length in lengths]


def packer(model: Limited, max_tokens: int, *, per_token: bool = False) -> Packer:
    return Packer(model, pad_id=99, max_tokens=max_tokens, per_token=per_token, metrics=Metrics())


@given(lengths=st.lists(st.integers(1, 64), max_size=40), budget=st.integers(1, 256))
def test_every_sequence_is_in_one_pass_and_passes_keep_the_budget(lengths: list[int], budget: int) -> None:
    passes = plan_passes(lengths, budget)
    assert sorted(index for indices in passes for index in indices) == list(range(len(lengths)))
    for indices in passes:
        assert len(indices) == 1 or len(indices) * max(lengths[i] for i in indices) <= budget


@pytest.mark.parametrize(
    "error",
    [None, MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("CUDA error: out of memory")],
)
def test_running_out_of_memory_splits_the_pass_and_is_counted(error: Exception | None) -> None:
    model = Limited(cells=8, error=error)
    own = packer(model, max_tokens=1000)
    results = own.run(sequences(4, 2, 3, 4, 1))
    assert [float(result[0][0]) for result in results] == [10, 3, 6, 10, 1]
    assert max(rows * length for rows, length in model.shapes) <= 8
    assert own._metrics.totals["out_of_memory"] > 0


def test_only_what_does_not_fit_alone_fails() -> None:
    results = packer(Limited(cells=8), max_tokens=1000).run(sequences(3, 9, 2))
    assert isinstance(results[1], RequestError)
    assert results[1].type == "overloaded"
    assert [float(results[i][0][0]) for i in (0, 2)] == [6, 3]


def test_other_failures_are_internal_and_cost_their_pass_only() -> None:
    results = packer(Limited(cells=8, error=ValueError("no")), max_tokens=8).run(sequences(9, 4))
    assert isinstance(results[0], RequestError)
    assert results[0].type == "internal"
    assert float(results[1][0][0]) == 10


def test_pads_are_cut_off_outputs_per_token() -> None:
    class PerToken(Limited):
        def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
            return (ids.astype(np.float32),)

    results = packer(PerToken(100), max_tokens=100, per_token=True).run(sequences(2, 5))
    assert [result[0].tolist() for result in results] == [[1, 2], [1, 2, 3, 4, 5]]


def test_collate_pads_on_the_right() -> None:
    ids, segments, mask = collate([Sequence([5, 6, 7], [0, 0, 1]), Sequence([8])], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert segments.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert {array.dtype for array in (ids, segments, mask)} == {np.dtype(np.int64)}


def test_other_errors_are_no_lack_of_memory() -> None:
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(ValueError("out of memory"))


def test_no_sequences_need_no_pass() -> None:
    assert packer(Limited(8), 8).run([]) == []
