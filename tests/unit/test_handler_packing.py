"""Passes under a token budget, and what happens when memory runs out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import RequestError
from handler.metrics import Metrics
from handler.packing import Arrays, Keep, Model, Packer, collate, join, out_of_memory, plan_passes
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


def whole(sequence: Sequence, outputs: Arrays) -> Arrays:
    return outputs


def packer(model: Model, max_tokens: int, *, keep: Keep = whole, packed: bool = True) -> Packer:
    return Packer(model, pad_id=99, max_tokens=max_tokens, keep=keep, packed=packed, metrics=Metrics())


@given(lengths=st.lists(st.integers(1, 64), max_size=40), budget=st.integers(1, 256))
def test_every_sequence_is_in_one_pass_and_passes_keep_the_budget(lengths: list[int], budget: int) -> None:
    passes = plan_passes(lengths, budget)
    assert sorted(index for indices in passes for index in indices) == list(range(len(lengths)))
    for indices in passes:
        assert len(indices) == 1 or len(indices) * max(lengths[i] for i in indices) <= budget


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("efft: the product failed with cuBLASLt status 3"),
    ],
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


def test_the_task_says_what_is_kept_of_each_row() -> None:
    def last(sequence: Sequence, outputs: Arrays) -> Arrays:
        return (outputs[1][len(sequence.ids) - 1 :],)

    results = packer(Limited(100), max_tokens=100, keep=last).run(sequences(2, 5))
    assert [result[0].tolist() for result in results] == [[2, 99, 99, 99], [5]]


def test_no_pass_begins_after_the_deadline_and_short_ones_come_first() -> None:
    class Slow(Limited):
        def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
            time.sleep(0.05)
            return super().__call__(ids, segments, mask)

    results = packer(Slow(100), max_tokens=8).run(sequences(8, 4, 4), deadline=time.monotonic() + 0.02)
    assert isinstance(results[0], RequestError)
    assert results[0].type == "overloaded"
    assert [float(result[0][0]) for result in results[1:]] == [10, 10]


@pytest.mark.parametrize("cells", [8, 2**21])  # the check of a whole pass, and row by row where it is large
def test_a_row_that_is_no_number_fails_alone(cells: int) -> None:
    class Infinite(Limited):
        def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
            output = np.ones((len(ids), cells), dtype=np.float32)
            output[0, -1] = np.inf
            return (output,)

    results = packer(Infinite(100), max_tokens=100).run(sequences(3, 3))
    assert isinstance(results[0], RequestError)
    assert results[0].type == "internal"
    assert not isinstance(results[1], RequestError)


@pytest.mark.parametrize(("packed", "counted"), [(True, "padding_avoided"), (False, "padding")])
def test_pads_count_as_avoided_only_where_they_are(packed: bool, counted: str) -> None:
    own = packer(Limited(100), max_tokens=100, packed=packed)
    own.run(sequences(2, 5))
    assert {name: value for name, value in own._metrics.totals.items() if "padding" in name} == {counted: 3}


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


class Poisoned(Limited):
    """Fails on every pass that holds one of the ids; counts the tokens it was given."""

    def __init__(self, *ids: int) -> None:
        super().__init__(10**6)
        self.bad = set(ids)
        self.tokens: list[int] = []

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        self.tokens.append(int(mask.sum()))
        if self.bad & set(ids[mask == 1].tolist()):
            raise IndexError("index out of range in self")
        return super().__call__(ids, segments, mask)


@pytest.mark.parametrize("bad", [(7,), (0, 31), (3, 4, 5, 6, 20), tuple(range(32))])
def test_a_bad_input_is_its_own_error(bad: tuple[int, ...]) -> None:
    model = Poisoned(*(1000 + index for index in bad))
    own = packer(model, max_tokens=10_000)
    results = own.run([Sequence([1000 + index, 2, 3]) for index in range(32)])
    failed = [index for index, result in enumerate(results) if isinstance(result, RequestError)]
    assert failed == list(bad)
    assert {result.type for result in results if isinstance(result, RequestError)} == {"internal"}
    assert [float(results[i][0][0]) for i in range(32) if i not in bad] == [1005 + i for i in range(32) if i not in bad]
    assert len({result.message for result in results if isinstance(result, RequestError)}) == len(bad)
    # Bounded: a halving costs the pass's tokens once more at most.
    assert sum(model.tokens) <= 3 * 32 * (1 + 5)
    assert own._metrics.totals["failed_passes"] >= len(bad)


def test_a_row_that_cannot_be_kept_costs_no_other() -> None:
    def keep(sequence: Sequence, outputs: Arrays) -> Arrays:
        if len(sequence.ids) == 2:
            raise ValueError("no")
        return outputs

    results = packer(Limited(100), max_tokens=100, keep=keep).run(sequences(3, 2, 4))
    assert [isinstance(result, RequestError) for result in results] == [False, True, False]


def test_a_model_that_gives_too_few_rows_costs_those() -> None:
    class Short(Limited):
        def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
            return (np.ones((len(ids) - 1, 1), dtype=np.float32),)

    assert [isinstance(r, RequestError) for r in packer(Short(9), max_tokens=99).run(sequences(3, 3))] == [False, True]


def test_ids_beyond_the_word_table_do_not_reach_the_model() -> None:
    model = Poisoned(50)
    own = Packer(model, pad_id=0, max_tokens=100, keep=whole, packed=True, metrics=Metrics(), vocabulary=50)
    results = own.run([Sequence([1, 49]), Sequence([1, 50]), Sequence([2, 3])])
    assert isinstance(results[1], RequestError)
    assert (results[1].type, results[1].status) == ("unsupported", 422)
    assert "50 rows" in results[1].message
    assert [float(results[i][0][0]) for i in (0, 2)] == [50, 5]
    assert len(model.tokens) == 1
    assert all(isinstance(result, RequestError) for result in own.run([Sequence([50])]))


def test_splitting_ends_at_the_deadline() -> None:
    class Slow(Poisoned):
        def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
            time.sleep(0.05)
            return super().__call__(ids, segments, mask)

    model = Slow(1)
    results = packer(model, max_tokens=1000).run(sequences(*[2] * 32), deadline=time.monotonic() + 0.12)
    assert {result.type for result in results if isinstance(result, RequestError)} >= {"overloaded"}
    assert len(model.tokens) <= 4


def test_a_device_that_is_lost_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Limited):
        device = torch.device("cuda", 0)
        calls = 0

        def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
            self.calls += 1
            raise RuntimeError("CUDA error: device-side assert triggered")

    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    model = Lost(8)
    own = packer(model, max_tokens=16)
    results = own.run(sequences(*[4] * 16))
    assert model.calls == 1
    assert own.lost
    assert {result.type for result in results if isinstance(result, RequestError)} == {"internal", "overloaded"}
    assert len([result for result in results if isinstance(result, RequestError)]) == 16


def test_an_error_that_the_device_survives_is_an_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Survivor(Poisoned):
        device = torch.device("cuda", 0)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    own = packer(Survivor(9), max_tokens=1000)
    results = own.run([Sequence([index, 2]) for index in range(1, 17)])
    assert [i for i, result in enumerate(results) if isinstance(result, RequestError)] == [8]
    assert not own.lost


def test_a_pass_is_of_one_adapter_and_all_come_back_in_order() -> None:
    models = {name: Limited(1000) for name in ("first", "second", "third")}
    packer = Packer(
        models["first"], pad_id=99, max_tokens=16, keep=whole, packed=True, metrics=Metrics(), adapters=models
    )
    given = sequences(3, 5, 4, 2, 7, 6)
    for sequence, name in zip(given, ["second", None, "third", "second", None, "second"], strict=True):
        sequence.adapter = name
    outputs = packer.run(given)
    assert [output[0].item() for output in outputs if not isinstance(output, RequestError)] == [6, 15, 10, 3, 28, 21]
    assert {name: model.shapes for name, model in models.items()} == {
        "first": [(2, 7)], "second": [(1, 2), (2, 6)], "third": [(1, 4)],
    }  # fmt: skip


def test_one_adapter_that_fails_costs_the_others_nothing() -> None:
    models = {"first": Limited(1000), "second": Limited(0, ValueError("damaged"))}
    packer = Packer(
        models["first"], pad_id=99, max_tokens=64, keep=whole, packed=True, metrics=Metrics(), adapters=models
    )
    given = sequences(3, 4)
    given[1].adapter = "second"
    good, bad = packer.run(given)
    assert isinstance(bad, RequestError)
    assert bad.type == "internal"
    assert not isinstance(good, RequestError)


class Joining(Limited):
    """Takes packed ids: sums a sequence's, and gives its tokens' own back."""

    takes_packed = True

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        if ids.size > self.cells:
            raise self.error
        self.shapes.append((len(mask) - 1, len(ids)))
        return (ids.astype(np.float32) + 100 * segments,)


def joining(model: Model, max_tokens: int, **options: Any) -> Packer:
    given = {"pad_id": 99, "keep": whole, "packed": True, "metrics": Metrics(), "per_token": True, **options}
    return Packer(model, max_tokens=max_tokens, **given)


def test_join_has_no_pads() -> None:
    ids, segments, offsets = join([Sequence([5, 6, 7], [0, 0, 1]), Sequence([8]), Sequence([9, 9])])
    assert (ids.tolist(), segments.tolist()) == ([5, 6, 7, 8, 9, 9], [0, 0, 1, 0, 0, 0])
    assert offsets.tolist() == [0, 3, 4, 6]
    assert {array.dtype for array in (ids, segments, offsets)} == {np.dtype(np.int64)}
    assert not join([Sequence([1, 2])])[1].any()


def test_each_packed_sequence_gets_its_own_tokens() -> None:
    own = joining(Joining(100), max_tokens=100)
    many = [*sequences(4, 1, 3), Sequence([7, 8], [0, 1])]
    assert [result[0].tolist() for result in own.run(many)] == [[1, 2, 3, 4], [1], [1, 2, 3], [7, 108]]
    assert own._metrics.totals["tokens"] == 10
    assert own._metrics.totals["padding_avoided"] == 6


def test_of_packed_passes_only_tokens_count() -> None:
    model = Joining(100)
    joining(model, max_tokens=16, most_cells=64).run(sequences(10, 1, 1, 1, 1, 1))
    assert sorted(tokens for _, tokens in model.shapes) == [15]


def test_a_packed_pass_is_split_as_any_other() -> None:
    model = Joining(8)
    results = joining(model, max_tokens=100).run(sequences(4, 9, 3, 4))
    assert isinstance(results[1], RequestError)
    assert [len(results[place][0]) for place in (0, 2, 3)] == [4, 3, 4]


def test_ids_unknown_to_the_model_are_kept_from_packed_passes_too() -> None:
    own = joining(Joining(100), max_tokens=100, vocabulary=50)
    good, bad = own.run([Sequence([1, 2]), Sequence([3, 50])])
    assert isinstance(bad, RequestError)
    assert good[0].tolist() == [1, 2]
