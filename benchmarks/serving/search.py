"""The greatest rate at which a server keeps its 95th percentile within a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

FIRST_BURST = 16
BURST_SECONDS = 3.0
POINTS = 4
"""Rates tried: the last step is 5 % of the capacity."""
_HIGHEST, _LOWEST = 1.2, 0.4
_FALLBACK = (0.4, 0.3, 0.2, 0.1)
"""Tried where no rate between the two is kept: a limit near the time of a single request."""


def capacity(burst: Callable[[int], float]) -> float:
    """Requests/s of a server that never waits for one. ``burst``: sends so many at once, returns the seconds until
    the last answer."""
    first = FIRST_BURST / burst(FIRST_BURST)
    number = max(FIRST_BURST, min(900, round(first * BURST_SECONDS)))  # TorchServe's queue holds 1,000
    return number / burst(number)


def rates(
    capacity: float, limit: float, offer: Callable[[float], dict[str, Any]], points: int = POINTS
) -> Iterator[dict[str, Any]]:
    """Bisect between 0.4 and 1.2 of the capacity, or go below; ``limit`` in milliseconds; yields the row of every rate
    tried."""
    low, high = _LOWEST, _HIGHEST
    for _ in range(points):
        middle = (low + high) / 2
        row = offer(middle * capacity)
        yield row
        low, high = (middle, high) if within(row, limit) else (low, middle)
    for fraction in _FALLBACK if low == _LOWEST else ():
        row = offer(fraction * capacity)
        yield row
        if within(row, limit):
            return


def within(row: dict[str, Any], limit: float) -> bool:
    """Whether every request was answered, and 95 % of them within ``limit`` milliseconds."""
    return row["failed"] == 0 and row["p95"] is not None and row["p95"] <= limit
