"""Reads the results that count and writes ``index.html`` with its plots beside it; on request the README's plots."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import results, standing, table
from benchmarks.report import chart, plots
from benchmarks.report.page import Section, page

DEFAULT = Path(__file__).parents[1] / "results" / "report"
_README = ("latency", "padding")
"""The plots that docs/benchmarks.md shows, drawn from the newest run that has all of them."""
_TITLES = {  # in the page's order
    "encoder": "Encoder",
    "serving": "Serving",
    "accuracy-squad": "Accuracy: questions (SQuAD's measures)",
    "accuracy-labels": "Accuracy: text classification",
    "accuracy-mrpc": "Accuracy: MRPC",
    "accuracy-sst2": "Accuracy: SST-2",
    "accuracy-conll": "Accuracy: CoNLL-2003",
    "soak": "Soak",
    "handler": "The handler's own time",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder with the JSON files")
    parser.add_argument("--output", type=Path, default=DEFAULT, help="folder for the page and its plots")
    parser.add_argument("--figures", type=Path, help="folder for the README's plots; without it they are not drawn")


def run(options: argparse.Namespace) -> None:
    """Write the page, each kind's newest result first. Raises ValueError when there is no result."""
    found = [(kind, result) for kind in _TITLES for result in results.current(kind, options.results)]
    if not found:
        raise ValueError(f"no results in {options.results}; run make bench first")
    options.output.mkdir(parents=True, exist_ok=True)
    sections = [section(kind, result, options.output, f"{index}-{kind}") for index, (kind, result) in enumerate(found)]
    path = options.output / "index.html"
    encoders = [result for kind, result in found if kind == "encoder"]
    path.write_text(page(sections, standing.overview(encoders)), encoding="utf-8")
    if options.figures is not None:
        draw_figures(encoders, options.figures)
    print(path)


def section(kind: str, result: dict[str, Any], folder: Path, stem: str) -> Section:
    """One result: its plots, written into ``folder`` under names that begin with ``stem``, and its tables."""
    place = f"{table.place(result)}, {result['date'][:16].replace('T', ' ')}"
    tables = table.of(result)
    if kind == "encoder":
        tables += standing.against_best(result)
    return Section(_TITLES[kind], place, table.device_line(result), plots.draw(result, folder, stem), tables)


def draw_figures(encoders: list[dict[str, Any]], folder: Path) -> None:
    """Write the README's chart, of the results with the most to show on two cores and on a GPU, and the two plots of
    docs/benchmarks.md, from the first result that has both; without one, nothing."""
    of_cpu = [result for result in encoders if result["device"]["kind"] == "cpu" and result["device"]["threads"] == 2]
    of_gpu = [result for result in encoders if result["device"]["kind"] == "cuda"]
    if of_cpu and of_gpu:
        cpu = max(of_cpu, key=lambda result: len(chart.bars(result, chart.CPU, "fp32")))
        gpu = max(of_gpu, key=lambda result: len(chart.bars(result, chart.GPU, "fp16")))
        folder.mkdir(parents=True, exist_ok=True)
        chart.draw(cpu, gpu, folder / "beside.png")
    for result in encoders:
        if plots.has(result, _README):
            folder.mkdir(parents=True, exist_ok=True)
            plots.draw(result, folder, "encoder", _README)
            return
