"""Results as tables: plain text that is also Markdown, or the cells for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.ratios import basis, over, over_floor

BASELINE = "ths"
"""The engine that speed-ups are over: TorchScript as TorchServe users have it today."""
OURS = "thsext"
"""The engine that is compared with the others."""


@dataclass(frozen=True)
class Table:
    """A table with its title and notes below it."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)

    def text(self) -> str:
        """As Markdown that reads well in a terminal."""
        return "\n".join([self.title, "", markdown(self.header, self.lines), *self.notes, ""])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def text(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text(header), rule, *(text(row) for row in rows)])


def of(result: dict[str, Any]) -> list[Table]:
    """A result's tables, whatever its kind."""
    return _KINDS[result["kind"].split("-")[0]](result)


def print_all(result: dict[str, Any]) -> None:
    """The device in a line, then every table."""
    print(device_line(result))
    for table in of(result):
        print(table.text())


def _threads(result: dict[str, Any]) -> str:
    clock = ", processor time" if result.get("settings", {}).get("clock") == "cpu" else ""
    return f"threads: {result['device']['threads']}{clock}"


def device_line(result: dict[str, Any]) -> str:
    """Where a result comes from, in a line."""
    device, versions = result["device"], result["versions"]
    sets = ", ".join(device.get("instruction_sets", []))
    name = device.get("gpu") or f"{device['processor']} ({device.get('processor_model', '')}; {sets})"
    commit = result["commit"] + (" (modified)" if result["modified"] else "")
    settings = result.get("settings", {})
    load = f"load average {device['load_average']}"
    if "others" in settings:
        load = f"other processes took {settings['others']:.2f} cores meanwhile"
    where = f"{name}, {_threads(result)}, {load}"
    return f"{where}; torch {versions['torch']}; commit {commit}; {result['date']}"


def column(row: dict[str, Any]) -> str:
    """A workload's heading."""
    return row["workload"] if row["padding_share"] == 0 else f"{row['workload']} {row['lengths']}"


def _encoder(result: dict[str, Any]) -> list[Table]:
    """One table for each model and type, and one of memory."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["model"], row["data_type"]), []).append(row)
    tables = [_grid(f"{model} {data_type}", rows) for (model, data_type), rows in groups.items()]
    absent = [f"absent: {a['engine']}, {a['model']} {a['data_type']}: {a['reason']}" for a in result["absent"]]
    tables[-1] = Table(tables[-1].title, tables[-1].header, tables[-1].lines, [*tables[-1].notes, *absent])
    return [*tables, _memory(result)] if result["memory"] else tables


def _grid(title: str, rows: list[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(column(row) for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    cells = {(row["engine"], column(row)): row for row in rows}
    floors = {column(row): row["floor_ms"] for row in rows}
    cell = {c: milliseconds(floors[c]) if floors[c] else "-" for c in columns}
    lines = [["floor", *cell.values()]] if any(floors.values()) else []
    for engine in engines:
        lines.append([engine, *(_cell(cells.get((engine, c)), cells.get((BASELINE, c))) for c in columns)])
    title += ": milliseconds (median, half the distance of the quartiles)"
    title += " / ratio to the floor" if any(floors.values()) else ""
    title += f" / speed-up over {BASELINE}" if BASELINE in engines else ""
    title += f"; ratios: {basis(rows)}"
    counts = {column(row): f"{row['rounds']} rounds" for row in rows if "rounds" in row}
    lines.append(["", *(counts.get(c, "-") for c in columns)])
    return Table(title, ["engine", *columns], lines, _refusals(rows))


def _refusals(rows: list[dict[str, Any]]) -> list[str]:
    """Why rows have no time, in as few lines as say it."""
    refused: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["refused"]:
            refused.setdefault((row["engine"], row["refused"]), []).append(column(row))
    engines: dict[tuple[str, str], list[str]] = {}
    for (engine, why), where in refused.items():
        engines.setdefault((", ".join(where), why), []).append(engine)
    return [f"not timed: {', '.join(names)}; {where}: {why}" for (where, why), names in engines.items()]


def _cell(row: dict[str, Any] | None, baseline: dict[str, Any] | None) -> str:
    if row is None or "median_ms" not in row:
        return "-"
    parts = [milliseconds(row["median_ms"])]
    if "upper_ms" in row:
        parts[0] += f" ±{50 * (row['upper_ms'] - row['lower_ms']) / row['median_ms']:.0f} %"
    ratio, speedup = over_floor(row), over(baseline, row)
    parts += [f"{ratio:.2f}"] if ratio else []
    parts += [f"{speedup:.2f}x"] if speedup else []
    return " / ".join(parts)


def milliseconds(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _memory(result: dict[str, Any]) -> Table:
    entries = result["memory"]
    columns = list(dict.fromkeys(f"{e['model']} {e['data_type']} {e['workload']}" for e in entries))
    peaks = {(e["engine"], f"{e['model']} {e['data_type']} {e['workload']}"): e["peak_mib"] for e in entries}
    lines = []
    for engine in dict.fromkeys(e["engine"] for e in entries):
        lines.append([engine, *(f"{peaks[engine, c]:.0f}" if (engine, c) in peaks else "-" for c in columns)])
    measured = {(e["engine"], e["model"], e["data_type"]) for e in entries}
    timed = dict.fromkeys((r["engine"], r["model"], r["data_type"]) for r in result["rows"] if "rounds" in r)
    missing = [" ".join(key) for key in timed if key not in measured and "+" not in key[0]]  # a loop has no own process
    notes = [f"not measured within the run's time: {', '.join(missing)}"] if missing else []
    return Table("peak memory of a process with one engine, MiB", ["engine", *columns], lines, notes)


def _accuracy(result: dict[str, Any]) -> list[Table]:
    """One line for each kind and type."""
    rows, settings = result["rows"], result["settings"]
    lines = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    title = f"{settings['data']}: {settings['examples']} examples, batches of {settings['batch']}"
    return [Table(title, [name.replace("_", " ") for name in rows[0]], lines)]


TYPE_COLUMNS = {
    "type": ["data_type"],
    "tickets: accuracy / macro F1": ["ticket_routing_accuracy", "ticket_routing_macro_f1"],
    "other labels than fp32": ["ticket_routing_other_than_fp32"],
    "questions: EM / F1": ["document_qa_exact_match", "document_qa_f1"],
    "other answers than fp32": ["document_qa_other_than_fp32"],
    "MiniLM, worst token / pooled": ["token", "pooled"],
    "on dev messages": ["dev_token", "dev_pooled"],
    "matrices in 16 bits": ["ticket_routing_kept", "document_qa_kept", "minilm_kept"],
}
"""Of the table of types: a heading and the row's facts under it."""


def _types(result: dict[str, Any]) -> list[Table]:
    """A table for each device, and one of what two devices decide otherwise from one archive."""
    found = []
    for device in dict.fromkeys(row["device"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["device"] == device]
        lines = [[_facts_of(row, names) for names in TYPE_COLUMNS.values()] for row in rows]
        found.append(Table(f"what a type costs, {device}", list(TYPE_COLUMNS), lines))
    names = list(result["settings"]["inputs"])
    header = ["one archive on two devices", *(f"{n}: {what}" for n in names for what in ("others", "scores apart"))]
    lines = [
        [row["data_type"], *(_facts_of(row, [f"{n}_{what}"]) for n in names for what in ("decisions", "scores"))]
        for row in result["both"]
    ]
    notes = [f"refused: {name}: {facts['refused']}" for name, facts in result["archives"].items() if "refused" in facts]
    found = [*found, Table("cpu and cuda", header, lines)] if lines else found
    return [*found[:-1], Table(found[-1].title, found[-1].header, found[-1].lines, notes)]


def _unbuilt(result: dict[str, Any]) -> list[Table]:
    """A line for each model and variant."""
    names = [name for name in dict.fromkeys(name for row in result["rows"] for name in row) if name not in _VARIANT]
    lines = [
        [row["model"], row["variant"], _facts_of(row, ["token"]), _facts_of(row, ["pooled"])]
        + [f"{row[name]:.1f}" if name in row else "-" for name in names]
        for row in result["rows"]
    ]
    return [
        Table("emulated, cosines on the gate's inputs", ["model", "", "worst token", "worst pooled", *names], lines)
    ]


_VARIANT = ("model", "variant", "token", "pooled")


def _sparse(result: dict[str, Any]) -> list[Table]:
    """A line for each model, type and number of rows: each product dense / 2:4, and a layer's four together."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["model"], row["data_type"], row["rows"]), []).append(row)
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    lines, reasons = [], []
    for (model, data_type, rows), found in groups.items():
        cells = {row["name"]: " / ".join(f"{row[k]:.1f}" if k in row else "-" for k in _SPARSE) for row in found}
        whole = all(key in row for row in found for key in _SPARSE)
        sums = [sum(row[key] for row in found) for key in _SPARSE] if whole else []
        lines.append(
            [model, data_type, f"{rows:,}", *(cells[n] for n in names), f"{sums[1] / sums[0]:.2f}" if sums else "-"]
        )
        reasons += [f"{data_type}, {who}: {why}" for row in found for who, why in row.get("refused", {}).items()]
    header = ["BERT", "type", "rows", *names, "2:4 over dense, a layer's products"]
    return [Table("products, us, dense / 2:4", header, lines, [f"refused: {why}" for why in dict.fromkeys(reasons)])]


_SPARSE = ("dense_us", "sparse_us")


def _adapters(result: dict[str, Any]) -> list[Table]:
    """A line for each model, type and batch: milliseconds of one adapter, and how many times that several take."""
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["model"], row["data_type"], row["batch"]), {})[row["adapters"]] = row
    counts = sorted({row["adapters"] for row in result["rows"]} - {1})
    header = ["model", "type", "texts x tokens", "1 adapter, ms", *(f"{count} adapters" for count in counts)]
    lines = [
        [*named, milliseconds(rows[1]["median"]), *(f"{rows[n]['over_one']:.2f}" if n in rows else "-" for n in counts)]
        for named, rows in groups.items()
    ]
    where = result["device"].get("gpu") or result["device"]["processor"]
    clock = "processor time of one thread" if result["settings"]["clock"] == "cpu" else "by the clock"
    return [Table(f"a batch's adapters, {where}, {clock}", header, lines)]


def _facts_of(row: dict[str, Any], names: Sequence[str]) -> str:
    """A row's facts in a cell: percentages with a digit, cosines with four."""
    digits = 1 if names[0].endswith(("accuracy", "match")) else 4
    values = [row[name] for name in names if name in row]
    return " / ".join(f"{value:.{digits}f}" if isinstance(value, float) else str(value) for value in values) or "-"


def _serving(result: dict[str, Any]) -> list[Table]:
    """One line for each server and offered rate."""
    loops = result["kind"] == "loops"
    asked = "connections" if loops else "offered/s"
    header = ["server", asked, "achieved/s", "share of engine", "p50 ms", "p95 ms", "p99 ms"]
    header += ["failed", "stages", "processor time"]
    lines = []
    for row in result["rows"]:
        share = f"{100 * row['engine_share']:.0f} %" if "engine_share" in row else "-"
        stages, used = (
            ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in row.get(key, {}).items()) or "-"
            for key in ("stages_ms", "processor_ms")
        )
        latencies = [f"{row[name]:.1f}" if row[name] is not None else "-" for name in ("p50", "p95", "p99")]
        rates = [f"{row['connections']}" if loops else f"{row['offered']:.4g}", f"{row['achieved']:.1f}"]
        lines.append([row["server"], *rates, share, *latencies, str(row["failed"]), stages, used])
    engines = ", ".join(f"{name} {rate:.0f}" for name, rate in result["engine_rate"].items())
    notes = [f"the engine alone, sequences/s: {engines}"] if engines else []
    notes += [f"not loaded: {name}: {reason}" for name, reason in result.get("refused", {}).items()]
    if result.get("different_answers"):
        notes.append(f"requests that the archives do not all answer alike, scores apart: {result['different_answers']}")
    if "at_p95" in result:
        rates = {name: "none" if rate is None else f"{rate:.1f}" for name, rate in result["at_p95"].items()}
        found = ", ".join(f"{name} {rate}" for name, rate in rates.items())
        notes.append(f"requests/s at a p95 of at most {result['settings']['p95']:g} ms: {found}")
    what = f"{result['settings']['data']}, {result['settings']['data_type']}"
    title = f"serving {what}; stages (of a batch) and processor time (of a request) in ms"
    return [Table(title, header, lines, notes)]


_KINDS: dict[str, Callable[[dict[str, Any]], list[Table]]] = {
    "encoder": _encoder,
    "accuracy": _accuracy,
    "types": _types,
    "sparse": _sparse,
    "adapters": _adapters,
    "unbuilt": _unbuilt,
    "serving": _serving,
    "loops": _serving,
}
