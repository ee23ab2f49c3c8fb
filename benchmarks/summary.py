"""``python -m benchmarks summary FILE``: an encoder result against the best peer, as Markdown for the docs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results, table
from benchmarks.ratios import basis, over, over_floor, ratio_ms
from benchmarks.table import OURS, Table, column, milliseconds

Rows = list[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("files", type=Path, nargs="+", help="encoder results")
    parser.add_argument("--all", action="store_true", help="every engine, as the run itself prints them")


def run(options: argparse.Namespace) -> None:
    """Print the tables. Raises ValueError for a file that is no encoder's result."""
    for path in options.files:
        result = results.load(path)
        print(table.device_line(result), end="\n\n")
        for found in table.of(result) if options.all else against_best(result):
            print(found.text())


@dataclass(frozen=True)
class Standing:
    """One workload of one model and type: the rows that have a time, None for what was not measured."""

    floor: float | None = None
    """Milliseconds."""
    ours: dict[str, Any] | None = None
    peer: dict[str, Any] | None = None
    """The fastest of all other engines whose output was right."""

    @classmethod
    def of(cls, rows: Rows) -> Standing:
        """Of one workload's rows."""
        timed = {row["engine"]: row for row in rows if ratio_ms(row)}
        ours = timed.pop(OURS, None)
        peer = min(timed.values(), key=lambda row: ratio_ms(row) or 0.0, default=None)
        return cls(next((r["floor_ms"] for r in rows if r["floor_ms"]), None), ours, peer)


def against_best(result: dict[str, Any]) -> list[Table]:
    """For each model: floor, best peer, ours and their ratios, by type and workload.

    Raises ValueError when the result is no encoder's.
    """
    results.require_encoder(result)
    models: dict[str, dict[str, dict[str, Rows]]] = {}
    for row in result["rows"]:
        workloads = models.setdefault(row["model"], {}).setdefault(row["data_type"], {})
        workloads.setdefault(column(row), []).append(row)
    tables = []
    title = f"milliseconds (median); ratios: {basis(result['rows'])}"
    for model, types in models.items():
        columns = list(dict.fromkeys(name for found in types.values() for name in found))
        lines = [line for data_type, found in types.items() for line in _lines(data_type, found, columns)]
        tables.append(Table(f"{model}, {title}", [model, *columns], lines))
    return tables


def _lines(data_type: str, found: dict[str, Rows], columns: list[str]) -> list[list[str]]:
    lines = [[f"{name} {data_type}"] for name in ("floor", "best peer", OURS)]
    lines += [[f"{OURS} / {name}, {data_type}"] for name in ("best peer", "floor")]
    for one in (Standing.of(found.get(name, [])) for name in columns):
        peer = f"{_median(one.peer)} {one.peer['engine']}" if one.peer else "-"
        cells = [_time(one.floor), peer, _median(one.ours)]
        ratios = over(one.ours, one.peer), over_floor(one.ours)
        cells += ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        for line, cell in zip(lines, cells, strict=True):
            line.append(cell)
    return [line for line in lines if set(line[1:]) != {"-"}]


def _median(row: dict[str, Any] | None) -> str:
    return _time(row["median_ms"] if row else None)


def _time(value: float | None) -> str:
    return "-" if value is None else milliseconds(value)
