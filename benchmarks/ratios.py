"""Which of a row's times its ratios are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
FASTEST_SHARE, FEWEST = 0.1, 3
ROUNDS = 10
"""With fewer rounds, three of which are no tail, ratios are of medians."""
BASIS = "fastest calls"
"""What ratios are made of, in words, where rows keep enough calls."""


def fastest_mean_ms(row: Row) -> float | None:
    """The mean of the fastest tenth of a row's calls, three at least, in milliseconds; None where the row does not keep
    its calls or has fewer than ROUNDS.

    What else uses the machine only ever adds time (so says the documentation of Python's timeit, too), and not the same
    share to every engine. Medians of two runs on a shared host differ by what its other guests did meanwhile.
    """
    calls = sorted(row.get("calls_ms", ()))
    if len(calls) < ROUNDS:
        return None
    fastest = calls[: max(FEWEST, math.floor(FASTEST_SHARE * len(calls)))]
    return math.fsum(fastest) / len(fastest)


def median_ms(row: Row) -> float | None:
    """The median of a row's calls in milliseconds; None where it has no time."""
    return row.get("median_ms")


def ratio_ms(row: Row) -> float | None:
    """The time of a row that is compared with others: the fastest calls' mean where it is known, else the median; None
    where the row has no time."""
    return fastest_mean_ms(row) or median_ms(row)


def over(one: Row | None, other: Row | None) -> float | None:
    """How many times the other's time one row's is, by the same statistic of both; None where either has no time."""
    if one is None or other is None:
        return None
    for statistic in (fastest_mean_ms, median_ms):
        times = statistic(one), statistic(other)
        if times[0] and times[1]:
            return times[0] / times[1]
    return None


def over_floor(row: Row | None) -> float | None:
    """A row's time as a multiple of its floor; None where either is not known."""
    if row is None or not row["floor_ms"]:
        return None
    time = ratio_ms(row)
    return time / row["floor_ms"] if time else None


def basis(rows: list[dict[str, Any]]) -> str:
    """What the rows' ratios are made of, in words."""
    kept = [fastest_mean_ms(row) is not None for row in rows if "median_ms" in row]
    if not any(kept):
        return "medians"
    return BASIS if all(kept) else f"{BASIS}, medians where they are few"
