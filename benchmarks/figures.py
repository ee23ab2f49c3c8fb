"""``python -m benchmarks figures``: the chart of the README and the plots of docs/benchmarks.md, from results."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import results
from benchmarks.ratios import over
from benchmarks.table import BASELINE, column

matplotlib.use("Agg")  # before pyplot: no display is needed or looked for
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

CPU, GPU = "8x128", "32x384"
"""The chart's workloads of BERT-base."""
_OURS, _OTHER = "#cf222e", "#8c959f"
_NAMES = {
    "ori": "transformers", "ths": "TorchScript", "compile": "torch.compile", "packed": "PyTorch, packed",
    "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "ctranslate2": "CTranslate2", "thsext": "EFFT",
}  # fmt: skip
"""Engines that a user would pick, by the benchmarks' names."""
_OURS_IN = {"fp32": ("fp32", "bf16", "int8"), "fp16": ("fp16", "fp8", "int8")}
"""Our types that stand beside the others' one."""
_COLOURS = {
    "thsext": _OURS, "ths": "#0550ae", "ori": "#6e7781", "compile": "#8250df", "packed": "#bf8700",
    "openvino": "#1a7f37", "onnxruntime": "#0a7ea4", "ctranslate2": "#953800",
}  # fmt: skip
"""An engine has the same colour in all plots."""
_DPI = 110
Rows = list[dict[str, Any]]
Bar = tuple[str, float, bool]
"""Label, milliseconds, whether it is ours."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder with the JSON files")
    parser.add_argument("--output", type=Path, default=results.RESULTS.parents[1] / "docs" / "figures")


def run(options: argparse.Namespace) -> None:
    """Write the chart, of the results with the most to show on two cores and on a GPU, and both plots, from the newest
    result that has the data for them; what no result has the data for is not drawn. Prints the files.

    Raises ValueError when there is no result.
    """
    encoders = results.newest("encoder", options.results)
    if not encoders:
        raise ValueError(f"no encoder results in {options.results}; run make bench first")
    options.output.mkdir(parents=True, exist_ok=True)
    drawn = chart(encoders)
    for result in encoders:
        plots = {"encoder-latency": latency(result), "encoder-padding": padding(result)}
        if all(plots.values()):
            break
    else:
        plots = {}
    for name, figure in {"beside": drawn, **plots}.items():
        if figure is not None:
            path = options.output / f"{name}.png"
            figure.savefig(path, dpi=_DPI, metadata={"Software": None})
            print(path)
    plt.close("all")


def bars(found: Sequence[dict[str, Any]], workload: str, peers: str) -> list[Bar]:
    """BERT-base at ``workload``, the slowest first: other engines in the type ``peers``, ours in narrower ones too.

    ``found`` are one machine's results, the newest first, whose figure counts.
    """
    shown: dict[str, Bar] = {}
    for row in (row for result in found for row in result["rows"]):
        if row["model"] != "base" or row["workload"] != workload or "median_ms" not in row or row.get("refused"):
            continue
        ours = row["engine"] == "thsext"
        if row["engine"] not in _NAMES or row["data_type"] not in (_OURS_IN[peers] if ours else (peers,)):
            continue
        label = f"{_NAMES[row['engine']]}, {row['data_type']}"
        shown.setdefault(label, (label, row["median_ms"], ours))
    return sorted(shown.values(), key=lambda bar: -bar[1])


def chart(encoders: Sequence[dict[str, Any]]) -> Figure | None:
    """BERT-base in milliseconds, engine by engine, on two CPU cores and on one GPU."""
    of_cpu = [result for result in encoders if result["device"]["kind"] == "cpu" and result["device"]["threads"] == 2]
    of_gpu = [result for result in encoders if result["device"]["kind"] == "cuda"]
    if not of_cpu or not of_gpu:
        return None
    # Times of several CPU runs are not put together: a shared host's speed moves from day to day.
    cpu = max(of_cpu, key=lambda result: len(bars([result], CPU, "fp32")))
    name = max(of_gpu, key=lambda result: len(bars([result], GPU, "fp16")))["device"]["gpu"]
    gpu = [result for result in of_gpu if result["device"]["gpu"] == name]
    figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.4))
    _bars(panels[0], bars([cpu], CPU, "fp32"), f"two CPU cores, {CPU}")
    _bars(panels[1], bars(gpu, GPU, "fp16"), f"one {name.removeprefix('NVIDIA ')}, {GPU}")
    figure.tight_layout()
    return figure


def _bars(axes: Axes, shown: list[Bar], title: str) -> None:
    colours = [_OURS if ours else _OTHER for _, _, ours in shown]
    drawn = axes.barh([label for label, _, _ in shown], [value for _, value, _ in shown], color=colours)
    labels = [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for _, value, _ in shown]
    axes.bar_label(drawn, labels, padding=3, fontsize=8)
    axes.set_title(f"{title}, milliseconds", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)


def latency(result: dict[str, Any]) -> Figure | None:
    """Milliseconds by batch size at one length, a panel for each model and type."""
    rows = [row for row in _timed(result) if row["workload"].endswith("x128")]
    groups = {key: group for key, group in _groups(rows).items() if len({r["workload"] for r in group}) > 1}
    if not groups:
        return None
    figure, panels = _panels(len(groups))
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
    return figure


def padding(result: dict[str, Any]) -> Figure | None:
    """Speed-up over ths by padding share, for sizes measured with several length distributions."""
    found = _groups(_timed(result)).items()
    groups = {
        key: group
        for key, group in found
        if len(_shares(group, _most_varied(group))) > 1 and any(row["engine"] == BASELINE for row in group)
    }
    if not groups:
        return None
    figure, panels = _panels(len(groups))
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
    return figure


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


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Panels in rows of two."""
    columns = min(2, count)
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
    return {
        "color": _colour(engine),
        "label": engine,
        "linewidth": 2.4 if engine == "thsext" else 1.4,
        "marker": "o",
        "markersize": 4,
        "linestyle": "--" if engine.endswith("+loop") else "-",
    }


def _colour(engine: str) -> str:
    return _COLOURS.get(engine.partition("+")[0], "#1b1f24")
