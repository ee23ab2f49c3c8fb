"""Interleaved timing: every round runs every engine once, so that a change of the machine's mood hits all alike."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Call = Callable[[], object]
Clock = Callable[[], float]
MIN_ROUNDS, MAX_ROUNDS = 3, 200
PAUSE = 0.005
"""Seconds between two engines: thread pools that spin after their work (OpenMP's, ONNX Runtime's) go to sleep in it."""
SHORT = 0.02
"""Seconds. Where the fastest engine's call is shorter, every engine's is preceded by an unmeasured one: the other
engines emptied the caches."""
LONG = 0.5
"""A call longer than this, in seconds, is estimated by one run."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise measured calls, in seconds."""
        lower, median, upper = np.quantile(np.asarray(seconds) * 1e3, (0.25, 0.5, 0.75))
        return cls(float(median), float(lower), float(upper), len(seconds))

    def figures(self) -> dict[str, float]:
        """As a result row carries it."""
        return {"median_ms": self.median, "lower_ms": self.lower, "upper_ms": self.upper, "rounds": self.rounds}


CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""By name; ``cpu`` is the processor time of all threads together, which other processes disturb little."""


def once(call: Call, synchronize: Call, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, the device idle before and after."""
    synchronize()
    start = clock()
    call()
    synchronize()
    return clock() - start


class Turns:
    """Calls that take turns, every round in a new random order. Rounds may be added at several times, since the machine
    of one minute is not that of the next."""

    def __init__(
        self,
        calls: Mapping[str, Call],
        *,
        synchronize: Call = lambda: None,
        clock: Clock = time.perf_counter,
        seed: int | str = 0,
    ) -> None:
        self.calls, self.synchronize, self.clock = dict(calls), synchronize, clock
        self.generator = random.Random(seed)
        self.estimates = {name: _warm(call, synchronize) for name, call in self.calls.items()}
        self.warms = min(self.estimates.values(), default=0.0) < SHORT
        """Whether every measured call is preceded by an unmeasured one."""
        self.seconds = sum(t * (2 if self.warms else 1) + PAUSE for t in self.estimates.values())
        """What a round takes: the mean of the estimate and of all rounds."""
        self.taken: dict[str, list[float]] = {name: [] for name in self.calls}
        self.rounds = 0

    def run(self, rounds: int, limit: float = math.inf) -> None:
        """Until there are ``rounds`` altogether or the next one would end behind ``limit`` (monotonic clock)."""
        order = list(self.calls)
        while order and self.rounds < min(rounds, MAX_ROUNDS) and time.monotonic() + self.seconds < limit:
            start = time.monotonic()
            self.generator.shuffle(order)
            for name in order:
                time.sleep(PAUSE)
                if self.warms:
                    self.calls[name]()
                self.taken[name].append(once(self.calls[name], self.synchronize, self.clock))
            self.rounds += 1
            self.seconds += (time.monotonic() - start - self.seconds) / (self.rounds + 1)

    def timings(self) -> dict[str, Timing]:
        """Of all rounds so far."""
        return {name: Timing.of(times) for name, times in self.taken.items() if times}


def _warm(call: Call, synchronize: Call) -> float:
    """Run until the time no longer falls (compilers, caches and allocators settle); the lesser of the last two times in
    seconds.

    A long call settles within itself, and one of it costs enough.
    """
    last = current = once(call, synchronize)
    for _ in range(4):
        if last > LONG:
            break
        current = once(call, synchronize)
        if current > 0.9 * last:
            break
        last = current
    return min(last, current)
