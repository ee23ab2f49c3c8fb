"""``python -m benchmarks compare FIRST SECOND``: how far two runs of one machine agree."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import results, table
from benchmarks.ratios import BASIS, Row, fastest_mean_ms, median_ms

_IDENTITY = ("model", "data_type", "workload", "lengths")
FLOOR = "floor"
"""Stands for an engine that takes the floor's time."""
Statistic = Callable[[Row], float | None]
STATISTICS: dict[str, Statistic] = {"medians": median_ms, BASIS: fastest_mean_ms}
CLOSE = 0.1
"""Ratios that differ by less agree."""

Difference = tuple[tuple[str, ...], float, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--over", metavar="ENGINE", default=table.BASELINE, help=f"the tables' baseline; or {FLOOR}")


def run(options: argparse.Namespace) -> None:
    """Print each engine's speed-up in both runs and by how much they differ, by the medians and by what ratios are made
    of, then how well these and the ratios to the floor agree, and what the machine gave meanwhile."""
    runs = results.load(options.first), results.load(options.second)
    _check(*runs, options.over)
    for name, statistic in STATISTICS.items():
        pairs = differences(*runs, statistic, options.over)
        lines = [[*of, f"{one:.3f}", f"{two:.3f}", f"{100 * apart(one, two):+.1f} %"] for of, one, two in pairs]
        if lines:
            title = f"time of {options.over} over the engine's, by {name}"
            print(table.Table(title, [*_IDENTITY, "engine", "first", "second", "difference"], lines).text())
    for over in dict.fromkeys((options.over, FLOOR)):
        for name, statistic in STATISTICS.items():
            print(f"over {over} by {name}: {_agreement(differences(*runs, statistic, over))}")
    for name, result in zip(("first", "second"), runs, strict=True):
        settings = result["settings"]
        rates = {"GB/s copied": settings.get("copied_gb_per_s")}
        rates |= {f"Gop/s of {t} products": of for t, of in settings.get("multiplied_gop_per_s", {}).items()}
        said = [f"{statistics.median(of)} {unit} ({min(of)} to {max(of)})" for unit, of in rates.items() if of]
        if said:
            print(f"the {name} run's machine: {', '.join(said)}")


def differences(
    first: dict[str, Any],
    second: dict[str, Any],
    statistic: Statistic = median_ms,
    over: str = table.BASELINE,
) -> list[Difference]:
    """(identity and engine, speed-up in the first run, in the second) for every row that both runs have."""
    one, two = _speedups(first, statistic, over), _speedups(second, statistic, over)
    return [(identity, one[identity], two[identity]) for identity in one if identity in two]


def apart(one: float, two: float) -> float:
    """By which share of the smaller the larger is larger; negative where the second is the smaller."""
    return two / one - 1 if two >= one else 1 - one / two


def _check(first: dict[str, Any], second: dict[str, Any], over: str) -> None:
    """Raises ValueError for what cannot be compared."""
    for result in (first, second):
        results.require_encoder(result)
        if over != FLOOR and all(row["engine"] != over for row in result["rows"]):
            raise ValueError(f"the result of {result['date']} has no engine {over!r}")
    for name in results.MACHINE:
        one, two = first["device"].get(name), second["device"].get(name)
        if one != two:
            raise ValueError(f"not the same machine: {name} is {one} in the first result and {two} in the second")


def _agreement(pairs: list[Difference]) -> str:
    if not pairs:
        return "nothing that both runs have"
    apart_by = sorted(abs(apart(one, two)) for _, one, two in pairs)
    close = sum(share < CLOSE for share in apart_by)
    middle, worst = statistics.median(apart_by), apart_by[-1]
    within = f"{close} of {len(pairs)} ratios within {100 * CLOSE:.0f} %"
    return f"{within}, the median {100 * middle:.1f} %, the worst {100 * worst:.1f} % apart"


def _speedups(result: dict[str, Any], statistic: Statistic, over: str) -> dict[tuple[str, ...], float]:
    times: dict[tuple[str, ...], dict[str, float]] = {}
    for row in result["rows"]:
        engines = times.setdefault(results.key(row, _IDENTITY), {})
        for engine, time in ((row["engine"], statistic(row)), (FLOOR, row["floor_ms"])):
            if time:
                engines[engine] = time
    return {
        (*identity, engine): engines[over] / time
        for identity, engines in times.items()
        if over in engines
        for engine, time in engines.items()
        if engine not in (over, FLOOR)
    }
