"""``python -m benchmarks compare FIRST SECOND``: how far two runs of one machine agree."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import results, table

_IDENTITY = ("model", "data_type", "workload", "lengths")
_STATISTICS = {"medians": "median_ms", "fastest calls": "fastest_ms"}
CLOSE = 0.1
"""Speed-ups that differ by less agree."""

Difference = tuple[tuple[str, ...], float, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--over", metavar="ENGINE", default=table.BASELINE, help="speed-ups over this engine")


def run(options: argparse.Namespace) -> None:
    """Print each engine's speed-up in both runs and by how much they differ, by the medians and by the fastest calls,
    and what memory gave meanwhile."""
    runs = results.load(options.first), results.load(options.second)
    found = {name: differences(*runs, statistic, options.over) for name, statistic in _STATISTICS.items()}
    for name, pairs in found.items():
        lines = [[*of, f"{one:.3f}", f"{two:.3f}", f"{100 * apart(one, two):+.1f} %"] for of, one, two in pairs]
        if lines:
            title = f"speed-up over {options.over} by {name}"
            print(table.Table(title, [*_IDENTITY, "engine", "first", "second", "difference"], lines).text())
    for name, pairs in found.items():
        print(_agreement(name, pairs))
    for name, result in zip(("first", "second"), runs, strict=True):
        rates = result["settings"].get("copied_gb_per_s")
        if rates:
            middle = f"{statistics.median(rates):.1f} GB/s copied"
            print(f"memory during the {name} run: {middle} ({min(rates)} to {max(rates)})")


def differences(
    first: dict[str, Any], second: dict[str, Any], statistic: str = "median_ms", over: str = table.BASELINE
) -> list[Difference]:
    """(identity and engine, speed-up in the first run, in the second) for every row that both runs have."""
    one, two = _speedups(first, statistic, over), _speedups(second, statistic, over)
    return [(identity, one[identity], two[identity]) for identity in one if identity in two]


def apart(one: float, two: float) -> float:
    """By which share of the first the second differs."""
    return two / one - 1


def _agreement(name: str, pairs: list[Difference]) -> str:
    if not pairs:
        return f"by {name}: nothing that both runs have"
    apart_by = sorted(abs(apart(one, two)) for _, one, two in pairs)
    close = sum(share < CLOSE for share in apart_by)
    middle, worst = statistics.median(apart_by), apart_by[-1]
    within = f"{close} of {len(pairs)} speed-ups within {100 * CLOSE:.0f} %"
    return f"by {name}: {within}, the median {100 * middle:.1f} %, the worst {100 * worst:.1f} % apart"


def _speedups(result: dict[str, Any], statistic: str, over: str) -> dict[tuple[str, ...], float]:
    timed = [row for row in result["rows"] if statistic in row]
    base = {results.key(r, _IDENTITY): r[statistic] for r in timed if r["engine"] == over}
    return {
        (*results.key(r, _IDENTITY), r["engine"]): base[results.key(r, _IDENTITY)] / r[statistic]
        for r in timed
        if results.key(r, _IDENTITY) in base and r["engine"] != over
    }
