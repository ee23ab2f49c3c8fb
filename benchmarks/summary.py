"""``python -m benchmarks summary FILE``: an encoder result against the best peer, as Markdown for the docs."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import results, standing, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("files", type=Path, nargs="+", help="encoder results")
    parser.add_argument("--all", action="store_true", help="every engine, as the run itself prints them")


def run(options: argparse.Namespace) -> None:
    """Print the tables. Raises ValueError for a file that is no encoder's result."""
    for path in options.files:
        result = results.load(path)
        print(table.device_line(result), end="\n\n")
        for found in table.of(result) if options.all else standing.against_best(result):
            print(found.text())
