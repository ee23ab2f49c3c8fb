"""Reads the newest results of each kind and device and writes ``index.html`` with its plots beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import results, table
from benchmarks.report import plots
from benchmarks.report.page import Section, page

DEFAULT = Path(__file__).parents[1] / "results" / "report"
_TITLES = {
    "encoder": "Encoder",
    "serving": "Serving",
    "accuracy-squad": "Accuracy: questions (SQuAD's measures)",
    "accuracy-labels": "Accuracy: text classification",
    "accuracy-mrpc": "Accuracy: MRPC",
    "accuracy-sst2": "Accuracy: SST-2",
    "accuracy-conll": "Accuracy: CoNLL-2003",
}
_DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder with the JSON files")
    parser.add_argument("--output", type=Path, default=DEFAULT, help="folder for the page and its plots")


def run(options: argparse.Namespace) -> None:
    """Write the page. Raises ValueError when there is no result."""
    found = [(kind, result) for kind in _TITLES for result in results.newest(kind, options.results)]
    if not found:
        raise ValueError(f"no results in {options.results}; run make bench first")
    options.output.mkdir(parents=True, exist_ok=True)
    sections = [section(kind, result, options.output) for kind, result in found]
    path = options.output / "index.html"
    path.write_text(page(sections), encoding="utf-8")
    print(path)


def section(kind: str, result: dict[str, Any], folder: Path) -> Section:
    """One result: its plots, written into ``folder``, and its tables."""
    device = result["device"]["kind"]
    images = plots.draw(result, folder, f"{kind}-{device}")
    return Section(f"{_TITLES[kind]}, {_DEVICES[device]}", table.device_line(result), images, table.of(result))
