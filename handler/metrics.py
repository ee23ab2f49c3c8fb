"""Counts and times of a worker, gathered cheaply and handed to a sink at most once a second."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge"]
Sink = Callable[["Sample"], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure; counters hold the increase since the last hand-over, gauges the latest or mean value."""

    name: str
    value: float
    unit: str
    kind: Kind
    error: str | None = None


class Metrics:
    """Counters and stage times; not thread-safe, as a worker has one thread.

    A line of log per figure and batch would cost more than the handler's other work, hence the hand-over once per
    ``interval`` seconds.
    """

    def __init__(self, interval: float = 1.0) -> None:
        self._interval = interval
        self._next = 0.0
        self._counters: dict[str, float] = defaultdict(float)
        self._errors: dict[str, int] = defaultdict(int)
        self._gauges: dict[str, float] = {}
        self._times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.totals: dict[str, float] = defaultdict(float)

    def add(self, name: str, value: float) -> None:
        """Raise a counter."""
        self._counters[name] += value
        self.totals[name] += value

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name] = value

    def add_error(self, type: str) -> None:
        """Count an error by its type."""
        self._errors[type] += 1
        self.totals[f"errors.{type}"] += 1

    def errors(self, type: str) -> int:
        """Errors of a type since the last hand-over."""
        return self._errors.get(type, 0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a batch."""
        start = time.perf_counter()
        try:
            yield
        finally:
            entry = self._times[name]
            entry[0] += time.perf_counter() - start
            entry[1] += 1

    def flush(self, sink: Sink, *, force: bool = False) -> None:
        """Hand everything gathered to ``sink`` if the interval has passed."""
        now = time.monotonic()
        if now < self._next and not force:
            return
        self._next = now + self._interval
        for sample in self._samples():
            sink(sample)
        self._counters.clear()
        self._errors.clear()
        self._times.clear()

    def _samples(self) -> Iterator[Sample]:
        for name, value in self._counters.items():
            yield Sample(name, value, "count", "counter")
        for type, number in self._errors.items():
            yield Sample("request_errors", number, "count", "counter", error=type)
        for name, value in self._gauges.items():
            yield Sample(name, value, "count", "gauge")
        for stage, (seconds, count) in self._times.items():
            yield Sample(f"{stage}_time", 1e3 * seconds / count, "ms", "gauge")
