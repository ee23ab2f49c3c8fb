"""Interleaved timing: every round runs every engine, so that a change of the machine's mood hits all alike.

On a CPU a round has one call of each, by the clock. On a GPU it has several, enqueued without waiting, so that the
host's work hides behind the device's, and timed between events.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

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
STREAM = 0.012
"""Seconds of each engine's calls in a round on a GPU."""
MOST_CALLS = 500
"""Of an engine on a GPU, about: so many are enough for any quantile here."""


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


def intervals(call: Call, count: int) -> list[float]:
    """Seconds of ``count`` calls on a GPU as they follow each other on a busy stream, one more before them."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    call()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * a.elapsed_time(b) for a, b in pairwise(events)]


class Turns:
    """Calls that take turns, every round in a new random order. Rounds may be added at several times, since the machine
    of one minute is not that of the next.

    ``stream``: seconds of each call's turn on a GPU, see :func:`intervals`; 0: a turn is one call, by the clock, from
    an idle device to an idle one.
    """

    def __init__(
        self,
        calls: Mapping[str, Call],
        *,
        synchronize: Call = lambda: None,
        clock: Clock = time.perf_counter,
        seed: int | str = 0,
        stream: float = 0.0,
    ) -> None:
        self.calls, self.synchronize, self.clock, self.stream = dict(calls), synchronize, clock, stream
        self.generator = random.Random(seed)
        warm = _settled if stream else _warm
        self.estimates = {name: warm(call, synchronize) for name, call in self.calls.items()}
        self.counts = {name: max(3, min(100, int(stream / t))) if stream else 1 for name, t in self.estimates.items()}
        """Calls of a turn."""
        self.warms = not stream and min(self.estimates.values(), default=0.0) < SHORT
        """Whether every measured call is preceded by an unmeasured one."""
        extra, pause = (1, 0.0) if stream else (int(self.warms), PAUSE)
        self.seconds = sum(t * (self.counts[name] + extra) + pause for name, t in self.estimates.items())
        """What a round takes: the mean of the estimate and of all rounds."""
        self.most = max(MIN_ROUNDS, MOST_CALLS // min(self.counts.values(), default=1)) if stream else MAX_ROUNDS
        self.taken: dict[str, list[float]] = {name: [] for name in self.calls}
        self.rounds = 0

    def run(self, rounds: int, limit: float = math.inf) -> None:
        """Until there are ``rounds`` altogether or the next one would end behind ``limit`` (monotonic clock)."""
        order = list(self.calls)
        most = min(rounds, self.most, MAX_ROUNDS)
        while order and self.rounds < most and time.monotonic() + self.seconds < limit:
            start = time.monotonic()
            self.generator.shuffle(order)
            for name in order:
                self.taken[name] += self._turn(name)
            self.rounds += 1
            self.seconds += (time.monotonic() - start - self.seconds) / (self.rounds + 1)

    def _turn(self, name: str) -> list[float]:
        call = self.calls[name]
        if self.stream:
            return intervals(call, self.counts[name])
        time.sleep(PAUSE)
        if self.warms:
            call()
        return [once(call, self.synchronize, self.clock)]

    def timings(self) -> dict[str, Timing]:
        """Of all rounds so far."""
        return {name: Timing.of(times) for name, times in self.taken.items() if times}


def interleave(calls: Mapping[str, Call], seconds: float = 5 * STREAM, rounds: int = 5) -> dict[str, Timing]:
    """Times on a GPU of calls that take turns ``rounds`` times, for ``seconds`` altogether each."""
    turns = Turns(calls, seed=random.randrange(2**31), stream=seconds / rounds)
    turns.run(rounds)
    return turns.timings()


def captured(call: Call) -> Call:
    """``call`` as a CUDA graph of its own; returns its replay, which keeps ``call`` and what it reads alive."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay(keep: object = (call, result)) -> None:
        graph.replay()

    return replay


def _settled(call: Call, synchronize: Call) -> float:
    """Call three times, for what is compiled or captured, and then estimate; seconds on a GPU."""
    for _ in range(3):
        call()
    return max(statistics.median(intervals(call, 3)), 1e-6)


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
