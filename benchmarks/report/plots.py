"""The plots, one PNG each. An engine has the same colour in all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.ratios import basis, over, over_floor
from benchmarks.report.page import Image, Picture
from benchmarks.table import BASELINE, column

matplotlib.use("Agg")  # before pyplot: no display is needed or looked for
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

_COLOURS = {
    "thsext": "#cf222e", "ths": "#0550ae", "ori": "#6e7781", "compile": "#8250df", "packed": "#bf8700",
    "openvino": "#1a7f37", "onnxruntime": "#0a7ea4", "ctranslate2": "#953800", "litserve": "#bc4c00",
    "infinity": "#116329", "openvino-weights": "#57ab5a", "plain": "#d4739c",
}  # fmt: skip
_DASHES = {"bf16": "--", "fp16": "-.", "int8": ":"}
"""Of servers that are named with a type."""
_DPI = 110
_WIDTHS = ((2, ""), (1, "-narrow"))
"""Panels in a row, and what a file's name ends with."""
Rows = list[dict[str, Any]]


def draw(result: dict[str, Any], folder: Path, stem: str, only: Collection[str] | None = None) -> list[Image]:
    """Write every plot a result has data for, or those named ``only``; returns them in the page's order.

    For the page each is written twice: with two panels in a row, and with one for narrow screens.
    """
    images = []
    for name, plot in _PLOTS.get(result["kind"], {}).items():
        if only is not None and name not in only:
            continue
        files = []
        for columns, suffix in _WIDTHS if only is None else _WIDTHS[:1]:
            drawn = plot(result, columns)
            if drawn is None:
                break
            files.append(_save(drawn[0], folder / f"{stem}-{name}{suffix}.png"))
            description = drawn[1]
        if files:
            images.append(Image(files[0], files[-1], description))
    return images


def has(result: dict[str, Any], names: Collection[str]) -> bool:
    """Whether a result has the data for every plot of these names."""
    for name in names:
        drawn = _PLOTS[result["kind"]][name](result, 2)
        if drawn is None:
            return False
        plt.close(drawn[0])
    return True


def _save(figure: Figure, path: Path) -> Picture:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    width, height = (round(inches * _DPI) for inches in figure.get_size_inches())
    plt.close(figure)
    return Picture(path.name, width, height)


def latency(result: dict[str, Any], columns: int) -> tuple[Figure, str] | None:
    """Milliseconds by batch size at one length, a panel for each model and type."""
    rows = [row for row in _timed(result) if row["workload"].endswith("x128")]
    groups = {key: group for key, group in _groups(rows).items() if len({r["workload"] for r in group}) > 1}
    if not groups:
        return None
    figure, panels = _panels(len(groups), columns)
    for axes, ((model, data_type), group) in zip(panels, groups.items(), strict=True):
        for engine, own in _by_engine(group).items():
            points = sorted((int(r["workload"].split("x")[0]), r) for r in own if r["lengths"] == group[0]["lengths"])
            batches = [batch for batch, _ in points]
            axes.plot(batches, [r["median_ms"] for _, r in points], **_style(engine))
            spread = [[r.get(end, r["median_ms"]) for _, r in points] for end in ("lower_ms", "upper_ms")]
            axes.fill_between(batches, *spread, color=_colour(engine), alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", title=f"{model} {data_type}", xlabel="batch size, length 128")
        sizes = sorted({int(row["workload"].split("x")[0]) for row in group})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        _plain_numbers(axes)
    panels[0].set_ylabel("milliseconds")
    _legend(figure, panels)
    return figure, "Latency by batch size: medians, quartiles shaded; both axes logarithmic; lower is better."


def floor(result: dict[str, Any], columns: int) -> tuple[Figure, str] | None:
    """Times over the machine's floor, a panel for each model and type."""
    rows = [row for row in _timed(result) if over_floor(row)]
    groups = _groups(rows)
    if not groups:
        return None
    figure, panels = _panels(len(groups), columns)
    for axes, ((model, data_type), group) in zip(panels, groups.items(), strict=True):
        sizes = list(dict.fromkeys(column(row) for row in group))
        engines = _by_engine(group)
        width = 0.8 / len(engines)
        for index, (engine, own) in enumerate(engines.items()):
            places = [sizes.index(column(row)) + (index - (len(engines) - 1) / 2) * width for row in own]
            axes.bar(places, [over_floor(row) or 0.0 for row in own], width, color=_colour(engine), label=engine)
        axes.axhline(1, color="#1b1f24", linewidth=1)
        axes.set_xticks(range(len(sizes)), [size.split()[0] for size in sizes], fontsize=8)
        axes.set(yscale="log", title=f"{model} {data_type}")
        _plain_numbers(axes)
    panels[0].set_ylabel("time / floor")
    _legend(figure, panels)
    text = "Ratio to the floor: time over that of the valid tokens at the machine's best matrix and memory rates"
    return figure, f"{text} (ratios: {basis(rows)})."


def padding(result: dict[str, Any], columns: int) -> tuple[Figure, str] | None:
    """Speed-up over ths by padding share, for sizes measured with several length distributions."""
    found = _groups(_timed(result)).items()
    groups = {
        key: group
        for key, group in found
        if len(_shares(group, _most_varied(group))) > 1 and any(row["engine"] == BASELINE for row in group)
    }
    if not groups:
        return None
    figure, panels = _panels(len(groups), columns)
    for axes, ((model, data_type), group) in zip(panels, groups.items(), strict=True):
        base = {column(row): row for row in group if row["engine"] == BASELINE}
        size = _most_varied(group)
        for engine, own in _by_engine(group).items():
            points = sorted(
                (100 * r["padding_share"], over(base[column(r)], r) or 0.0)
                for r in own
                if r["workload"] == size and column(r) in base
            )
            axes.plot([share for share, _ in points], [factor for _, factor in points], **_style(engine))
        axes.set(title=f"{model} {data_type}, {size}", xlabel="padding, % of the padded tensor")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel(f"speed-up over {BASELINE}")
    _legend(figure, panels)
    text = f"Speed-up over {BASELINE} by padding share: the lengths within one padded size vary"
    return figure, f"{text} (ratios: {basis(_timed(result))})."


def throughput(result: dict[str, Any], columns: int) -> tuple[Figure, str] | None:
    """Achieved rate and 95th percentile by offered rate."""
    if not result["rows"]:
        return None
    figure, panels = _panels(2, columns)
    by_server: dict[str, Rows] = {}
    for row in result["rows"]:
        by_server.setdefault(row["server"], []).append(row)
    for server, rows in by_server.items():
        offered = [row["offered"] for row in rows]
        panels[0].plot(offered, [row["achieved"] for row in rows], **_style(server))
        panels[1].plot(offered, [row["p95"] or float("nan") for row in rows], **_style(server))
    highest = max(row["offered"] for row in result["rows"])
    panels[0].plot([0, highest], [0, highest], ":", color="#6e7781", linewidth=1)
    panels[0].set(title="achieved rate", xlabel="offered requests/s", ylabel="answered requests/s")
    panels[1].set(title="95th percentile", xlabel="offered requests/s", ylabel="milliseconds", yscale="log")
    _plain_numbers(panels[1])
    _legend(figure, panels)
    return figure, "Throughput by rate, open loop: a curve that leaves the dotted line has fallen behind."


_PLOTS: dict[str, dict[str, Callable[[dict[str, Any], int], tuple[Figure, str] | None]]] = {
    "encoder": {"latency": latency, "floor": floor, "padding": padding},
    "serving": {"throughput": throughput},
}


def _timed(result: dict[str, Any]) -> Rows:
    return [row for row in result["rows"] if "median_ms" in row]


def _groups(rows: Rows) -> dict[tuple[str, str], Rows]:
    groups: dict[tuple[str, str], Rows] = {}
    for row in rows:
        groups.setdefault((row["model"], row["data_type"]), []).append(row)
    return groups


def _by_engine(rows: Rows) -> dict[str, Rows]:
    engines: dict[str, Rows] = {}
    for row in rows:
        engines.setdefault(row["engine"], []).append(row)
    return engines


def _most_varied(rows: Rows) -> str:
    """The size that was measured with the most padding shares."""
    return max({row["workload"]: None for row in rows}, key=lambda size: len(_shares(rows, size)))


def _shares(rows: Rows, size: str) -> set[float]:
    return {row["padding_share"] for row in rows if row["workload"] == size}


def _panels(count: int, most: int) -> tuple[Figure, list[Axes]]:
    """Panels in rows of ``most``."""
    columns = min(most, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns + 0.4, 3.4 * lines + 0.8), squeeze=False)
    panels = list(axes.flat)
    for unused in panels[count:]:
        unused.remove()
    for panel in panels[:count]:
        panel.grid(True, which="major", color="#d0d7de", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, panels[:count]


def _plain_numbers(axes: Axes) -> None:
    """1, 2, 5, 10 along a logarithmic axis instead of powers of ten."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, panels: Iterable[Axes]) -> None:
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    width, height = figure.get_size_inches()
    columns = min(len(handles), int(width / 1.5))
    lines = -(-len(handles) // columns)
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=columns, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.22 * lines + 0.1) / height))


def _style(engine: str) -> dict[str, Any]:
    name, _, data_type = engine.partition(":")
    ours = name == "thsext"
    dashes = "--" if engine.endswith("+loop") else _DASHES.get(data_type, "-")
    return {
        "color": _colour(engine),
        "label": engine,
        "linewidth": 2.4 if ours else 1.4,
        "marker": "o",
        "markersize": 4,
        "linestyle": dashes,
    }


def _colour(engine: str) -> str:
    return _COLOURS.get(re.split("[+:]", engine)[0], "#1b1f24")
