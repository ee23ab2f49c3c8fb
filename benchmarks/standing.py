"""Where the product stands: its times beside the best of the others, the baseline and the floor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks import results
from benchmarks.ratios import basis, over, over_floor, ratio_ms
from benchmarks.table import BASELINE, OURS, Table, column, milliseconds, place

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Standing:
    """One workload of one model and type: the rows that have a time, None for what was not measured."""

    floor: float | None
    """Milliseconds."""
    ours: dict[str, Any] | None
    baseline: dict[str, Any] | None
    peer: dict[str, Any] | None
    """The fastest of all other engines whose output was right."""

    @property
    def to_peer(self) -> float | None:
        """Our share of the best peer's time."""
        return over(self.ours, self.peer)

    @property
    def to_floor(self) -> float | None:
        """Our time as a multiple of the floor."""
        return over_floor(self.ours)

    @property
    def speedup(self) -> float | None:
        """How many times faster we are than the baseline."""
        return over(self.baseline, self.ours)


def standings(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Standing]]:
    """An encoder result's, by model and type, and in each by workload."""
    groups: dict[tuple[str, str], dict[str, Rows]] = {}
    for row in result["rows"]:
        workloads = groups.setdefault((row["model"], row["data_type"]), {})
        workloads.setdefault(column(row), []).append(row)
    return {key: {name: _standing(rows) for name, rows in found.items()} for key, found in groups.items()}


def against_best(result: dict[str, Any]) -> list[Table]:
    """For each model: floor, best peer, ours and their ratios, by type and workload.

    Raises ValueError when the result is no encoder's.
    """
    results.require_encoder(result)
    models: dict[str, dict[str, dict[str, Standing]]] = {}
    for (model, data_type), found in standings(result).items():
        models.setdefault(model, {})[data_type] = found
    tables = []
    title = f"milliseconds (median); ratios: {basis(result['rows'])}"
    for model, types in models.items():
        columns = list(dict.fromkeys(name for found in types.values() for name in found))
        lines = [line for data_type, found in types.items() for line in _lines(data_type, found, columns)]
        tables.append(Table(f"{model}, {title}", [model, *columns], lines))
    return tables


def overview(encoders: Iterable[dict[str, Any]]) -> list[Table]:
    """A table for each device with a line for each model and type: our least and greatest ratio over its workloads,
    in the result with the most engines, of several the first."""
    devices: dict[str, dict[tuple[str, str], tuple[int, dict[str, Any]]]] = {}
    for result in encoders:
        best = devices.setdefault(place(result), {})
        for key in standings(result):
            engines = len({row["engine"] for row in _rows_of(result, key)})
            if key not in best or engines > best[key][0]:
                best[key] = engines, result
    header = [OURS, f"over {BASELINE}", "of best peer", "over floor", "workloads", "engines", "measured", "by"]
    tables = []
    for device, best in devices.items():
        lines = []
        for key, (engines, result) in best.items():
            timed = [one for one in standings(result)[key].values() if one.ours]
            ratios = [_range(getattr(one, name) for one in timed) for name in ("speedup", "to_peer", "to_floor")]
            by = basis(_rows_of(result, key))
            lines.append([" ".join(key), *ratios, str(len(timed)), str(engines), result["date"][:10], by])
        tables.append(Table(device, header, lines))
    return tables


def _rows_of(result: dict[str, Any], key: tuple[str, str]) -> Rows:
    """Those of a model and type."""
    return [row for row in result["rows"] if (row["model"], row["data_type"]) == key]


def _range(given: Iterable[float | None]) -> str:
    ratios = [ratio for ratio in given if ratio is not None]
    return f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-"


def _standing(rows: Rows) -> Standing:
    timed = {row["engine"]: row for row in rows if ratio_ms(row)}
    ours, baseline = timed.pop(OURS, None), timed.get(BASELINE)
    peer = min(timed.values(), key=lambda row: ratio_ms(row) or 0.0, default=None)
    return Standing(next((r["floor_ms"] for r in rows if r["floor_ms"]), None), ours, baseline, peer)


def _lines(data_type: str, found: dict[str, Standing], columns: list[str]) -> list[list[str]]:
    lines = [[f"{name} {data_type}"] for name in ("floor", "best peer", OURS)]
    lines += [[f"{OURS} / {name}, {data_type}"] for name in ("best peer", "floor")]
    nothing = Standing(None, None, None, None)
    for one in (found.get(name, nothing) for name in columns):
        peer = f"{_median(one.peer)} {one.peer['engine']}" if one.peer else "-"
        cells = [_time(one.floor), peer, _median(one.ours)]
        cells += ["-" if ratio is None else f"{ratio:.2f}" for ratio in (one.to_peer, one.to_floor)]
        for line, cell in zip(lines, cells, strict=True):
            line.append(cell)
    return [line for line in lines if set(line[1:]) != {"-"}]


def _median(row: dict[str, Any] | None) -> str:
    return _time(row["median_ms"] if row else None)


def _time(value: float | None) -> str:
    return "-" if value is None else milliseconds(value)
