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
SHORT = 0.05
"""A call shorter than this, in seconds, is preceded by an unmeasured one: the other engines emptied the caches."""
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


CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""By name; ``cpu`` is the processor time of all threads together, which other processes disturb little."""


def once(call: Call, synchronize: Call, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, the device idle before and after."""
    synchronize()
    start = clock()
    call()
    synchronize()
    return clock() - start


def interleave(
    calls: Mapping[str, Call],
    seconds: float,
    *,
    limit: float = math.inf,
    synchronize: Call = lambda: None,
    clock: Clock = time.perf_counter,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time all calls in turns for about ``seconds``, at least MIN_ROUNDS times, in a new random order each round.

    Raises TimeoutError when so few rounds would already take longer than ``limit`` seconds.
    """
    start = time.perf_counter()
    estimates = {name: _warm(call, synchronize) for name, call in calls.items()}
    turn = sum(t * (2 if t < SHORT else 1) + PAUSE for t in estimates.values())
    warm = time.perf_counter() - start
    if warm + MIN_ROUNDS * turn > limit:
        raise TimeoutError(f"{MIN_ROUNDS} rounds would take longer than was left of the run's time")
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int((seconds - warm) / turn))) if calls else 0
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    generator = random.Random(seed)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            time.sleep(PAUSE)
            if estimates[name] < SHORT:
                calls[name]()
            taken[name].append(once(calls[name], synchronize, clock))
    return {name: Timing.of(times) for name, times in taken.items()}


def _warm(call: Call, synchronize: Call) -> float:
    """Run until the time no longer falls (compilers, caches and allocators settle); the last time in seconds.

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
