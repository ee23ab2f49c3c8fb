"""The measurement of several adapters' cost: what it runs is right, and its table says what was measured."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import adapters, results, table
from benchmarks.models import SIZES, load_source

TINY = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 112}
DEVICE = {"kind": "cuda", "gpu": "NVIDIA H200", "processor": "x", "threads": 2, "load_average": 0.1}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "minilm", {**TINY, "vocab_size": 100})


@pytest.mark.usefixtures("cpu_library")
def test_every_number_of_adapters_answers_alike_and_is_timed() -> None:
    source = load_source("minilm")
    run = adapters.packer(adapters.adapters(source, "fp32", "cpu", 4)).run
    made = {count: run(adapters.batch("8x16", count, 100)) for count in (1, 4)}
    for one, other in zip(made[1], made[4], strict=True):  # the copies have the same weights
        assert isinstance(one, tuple)
        assert isinstance(other, tuple)
        assert other[0] == pytest.approx(one[0], abs=1e-5)
    options: Any = Namespace(device="cpu", adapters=[2], batches=["8x16"], clock="cpu", rounds=3)
    rows = adapters.measure(source, "fp32", options)
    assert [(row["adapters"], row["over_one"] > 0) for row in rows] == [(1, True), (2, True)]


def test_a_failed_pass_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(adapters.TracedModel, "__call__", broken)
    options: Any = Namespace(device="cpu", adapters=[2], batches=["2x4"], clock="cpu", rounds=3)
    with pytest.raises(RuntimeError, match="a pass failed"):
        adapters.measure(load_source("minilm"), "fp32", options)


def test_the_table_has_a_line_for_each_batch(tmp_path: Path) -> None:
    rows = [
        {
            "model": "base",
            "data_type": "fp16",
            "batch": size,
            "adapters": count,
            "median": median,
            "over_one": median / 2,
        }
        for size in ("32x16", "32x64")
        for count, median in ((1, 2.0), (2, 2.4))
    ]
    facts = {"date": "2026-01-02T03:04:05+00:00", "device": DEVICE, "settings": {"clock": "wall"}}
    (found,) = table.of(results.load(results.save("adapters", {**facts, "rows": rows}, tmp_path)))
    assert found.title == "a batch's adapters, NVIDIA H200, by the clock"
    assert list(map(list, found.lines)) == [["base", "fp16", size, "2", "1.20"] for size in ("32x16", "32x64")]
