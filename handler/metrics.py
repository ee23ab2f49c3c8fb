"""Counts, times and distributions of a worker, gathered cheaply and handed to a sink once a second."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from handler.tracing import Tracer

Kind = Literal["counter", "gauge"]
Sink = Callable[["Sample"], None]

SECONDS: Final = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
POWERS: Final = tuple(float(1 << exponent) for exponent in range(15))
SHARES: Final = tuple(tenth / 10 for tenth in range(1, 10))
BOUNDS: Final[dict[str, Sequence[float]]] = {
    "stage_seconds": SECONDS,
    "pass_tokens": POWERS,
    "batch_requests": POWERS[:9],
    "padding_share": SHARES,
}
"""Histograms and the upper bounds of their buckets. padding_share: of a pass's cells, those that hold no token."""
RARE: Final = ("out_of_memory", "failed_passes", "truncations", "padding", "padding_avoided")
"""Counters that are handed over once as 0, before there is anything to count."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure; counters hold the increase since the last hand-over, gauges the latest or mean value.

    A histogram comes as counters by Prometheus' names: NAME_bucket for each ``le``, NAME_sum and NAME_count.
    """

    name: str
    value: float
    unit: str
    kind: Kind
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, the last one without a bound, and the sum of what was seen."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Values seen."""
        return sum(self.counts)

    def samples(self, name: str, unit: str, labels: tuple[tuple[str, str], ...]) -> Iterator[Sample]:
        """What Prometheus' client libraries would show, less the buckets that have not grown."""
        below = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            if below:
                le = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield Sample(f"{name}_bucket", below, "count", "counter", (*labels, ("le", le)))
        yield Sample(f"{name}_sum", self.total, unit, "counter", labels)
        yield Sample(f"{name}_count", below, "count", "counter", labels)


class Stage:
    """See Metrics.stage. A class, as a generator's context costs several times as much, four times a batch."""

    __slots__ = ("_metrics", "_name", "_span", "_start")

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name
        self._span: Any = None
        self._start = 0.0

    def __enter__(self) -> None:
        tracer = self._metrics.tracer
        if tracer is not None:
            self._span = tracer.start_as_current_span(self._name)
            self._span.__enter__()
        self._start = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        self._metrics.staged(self._name, time.perf_counter() - self._start)
        if self._span is not None:
            self._span.__exit__(*error)


class Metrics:
    """Counters, stage times and histograms of one worker; not for several threads but for :meth:`taken`.

    A line of log per figure and batch would cost more than the handler's other work, hence the hand-over once per
    ``interval`` seconds. ``tracer``: gets a span for each stage, where there is one.
    """

    def __init__(self, interval: float = 1.0, tracer: Tracer | None = None) -> None:
        self._interval = interval
        self._next = 0.0
        self.tracer = tracer
        self.lock = threading.Lock()
        """Held by who answers a batch, so that a hand-over on another thread has whole batches."""
        self._gauges: dict[str, float] = {}
        self.totals: dict[str, float] = defaultdict(float)
        self._clear()
        # A counter that a scraper first sees at 1 has not risen, to its mind.
        self._counters.update(dict.fromkeys(RARE, 0.0))

    def _clear(self) -> None:
        self._counters: dict[str, float] = defaultdict(float)
        self._errors: dict[str, int] = defaultdict(int)
        self._stages: dict[str, Histogram] = {}
        self._histograms: dict[str, Histogram] = {}

    def add(self, name: str, value: float) -> None:
        """Raise a counter."""
        self._counters[name] += value
        self.totals[name] += value

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name] = value

    def observe(self, name: str, value: float) -> None:
        """Count a value in the histogram of this name (of BOUNDS)."""
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = Histogram(BOUNDS[name])
        histogram.observe(value)

    def add_error(self, type: str) -> None:
        """Count an error by its type."""
        self._errors[type] += 1
        self.totals[f"errors.{type}"] += 1

    def errors(self, type: str) -> int:
        """Errors of a type since the last hand-over."""
        return self._errors.get(type, 0)

    def stage(self, name: str) -> Stage:
        """A context manager that times a stage of a batch."""
        return Stage(self, name)

    def staged(self, name: str, seconds: float) -> None:
        """Count a stage that took so long."""
        histogram = self._stages.get(name)
        if histogram is None:
            histogram = self._stages[name] = Histogram(SECONDS)
        histogram.observe(seconds)

    def flush(self, sink: Sink, *, force: bool = False) -> None:
        """Hand everything gathered to ``sink`` if the interval has passed."""
        now = time.monotonic()
        if now < self._next and not force:
            return
        self._next = now + self._interval
        for sample in self.taken():
            sink(sample)

    def taken(self) -> list[Sample]:
        """Everything gathered since the last time, which is forgotten; empty where no batch was answered."""
        if not (self._counters or self._errors or self._stages):
            return []
        samples = list(self._samples())
        self._clear()
        return samples

    def _samples(self) -> Iterator[Sample]:
        for name, value in self._counters.items():
            yield Sample(name, value, "count", "counter")
        for type, number in self._errors.items():
            yield Sample("request_errors", number, "count", "counter", (("Error", type),))
        for name, value in self._gauges.items():
            yield Sample(name, value, "count", "gauge")
        for stage, times in self._stages.items():
            yield Sample(f"{stage}_time", 1e3 * times.total / times.count, "ms", "gauge")
        for stage, times in self._stages.items():
            yield from times.samples("stage_seconds", "seconds", (("Stage", stage),))
        for name, histogram in self._histograms.items():
            yield from histogram.samples(name, "count", ())
