"""``python -m benchmarks compare FIRST SECOND``: how far two runs of one machine agree."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import results, table

_IDENTITY = ("model", "data_type", "workload", "lengths")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)


def run(options: argparse.Namespace) -> None:
    """Print each engine's speed-up over ths in both runs and how they differ, and what memory gave meanwhile."""
    runs = results.load(options.first), results.load(options.second)
    pairs = differences(*runs)
    lines = [[*identity, f"{one:.3f}", f"{two:.3f}", f"{100 * (two / one - 1):+.1f} %"] for identity, one, two in pairs]
    print(table.markdown([*_IDENTITY, "engine", "first", "second", "difference"], lines))
    worst = max((abs(two / one - 1) for _, one, two in pairs), default=0.0)
    print(f"largest difference of a speed-up over {table.BASELINE}: {100 * worst:.1f} %")
    for name, result in zip(("first", "second"), runs, strict=True):
        rates = result["settings"].get("copied_gb_per_s")
        if rates:
            middle = f"{statistics.median(rates):.1f} GB/s copied"
            print(f"memory during the {name} run: {middle} ({min(rates)} to {max(rates)})")


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[tuple[str, ...], float, float]]:
    """(identity and engine, speed-up in the first run, in the second) for every row that both runs have."""
    one, two = _speedups(first), _speedups(second)
    return [(identity, one[identity], two[identity]) for identity in one if identity in two]


def _speedups(result: dict[str, Any]) -> dict[tuple[str, ...], float]:
    timed = [row for row in result["rows"] if "median_ms" in row]
    base = {results.key(r, _IDENTITY): r["median_ms"] for r in timed if r["engine"] == table.BASELINE}
    return {
        (*results.key(r, _IDENTITY), r["engine"]): base[results.key(r, _IDENTITY)] / r["median_ms"]
        for r in timed
        if results.key(r, _IDENTITY) in base and r["engine"] != table.BASELINE
    }
