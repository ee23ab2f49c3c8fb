"""Calls that take turns, and the time that they share."""

from __future__ import annotations

import time
from functools import partial

import pytest

from benchmarks import timing
from benchmarks.budget import Budget
from benchmarks.timing import Call, Timing, Turns


def test_turns_run_each_engine_equally_often_and_time_it() -> None:
    now = 0.0

    def call(seconds: float) -> None:
        nonlocal now
        now += seconds

    turns = Turns({"slow": lambda: call(0.01), "fast": lambda: call(0.002)}, clock=lambda: now)
    assert turns.warms
    for rounds in (3, 5, 4):
        turns.run(rounds)
    timings = turns.timings()
    assert timings["slow"].rounds == timings["fast"].rounds == 5
    assert timings["slow"].median == pytest.approx(10)
    assert timings["fast"].median == pytest.approx(2)


def test_on_a_stream_a_turn_has_as_many_calls_as_fit_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose clock is a fake."""
    asked: list[tuple[str, int]] = []

    def intervals(call: Call, count: int) -> list[float]:
        asked.append((name := str(call()), count))
        return [{"short": 0.001, "long": 0.1}[name]] * count

    monkeypatch.setattr(timing, "intervals", intervals)
    turns = Turns({"short": lambda: "short", "long": lambda: "long"}, stream=0.012)
    assert turns.counts == {"short": 12, "long": 3}
    assert turns.seconds == pytest.approx(13 * 0.001 + 4 * 0.1)
    turns.run(5)
    assert sorted(asked[2:4]) == [("long", 3), ("short", 12)]
    found = turns.timings()
    assert (found["short"].rounds, found["long"].rounds) == (60, 15)
    assert (found["short"].median, found["long"].median) == pytest.approx((1, 100))
    turns.run(10_000)
    assert turns.rounds == timing.MOST_CALLS // 3
    assert timing.interleave({"short": lambda: "short"}, 0.1, 4)["short"].rounds == 100


def test_all_engines_are_warmed_or_none() -> None:
    counts = {"slow": 0, "fast": 0}

    def call(name: str, seconds: float) -> None:
        counts[name] += 1
        time.sleep(seconds)

    for fast, calls in ((0.001, 2), (0.03, 1)):
        turns = Turns({"slow": lambda: call("slow", 0.04), "fast": partial(call, "fast", fast)})
        counts.update(slow=0, fast=0)
        turns.run(1)
        assert counts == {"slow": calls, "fast": calls}


def test_timing_summarises_in_milliseconds() -> None:
    assert Timing.of([0.004, 0.001, 0.002, 0.003, 0.005]) == Timing(3.0, 2.0, 4.0, 5)


def test_a_budget_gives_later_parts_what_earlier_ones_leave() -> None:
    now = 0.0
    budget = Budget(100, [1, 1, 2], lambda: now)
    assert budget.next() == 25
    now = 10
    assert budget.next() == 10 + 90 / 3
    now = 70
    assert budget.next() == 100
    with pytest.raises(IndexError):
        budget.next()
