"""``python -m benchmarks COMMAND``: see ``--help``."""

from __future__ import annotations

import argparse
import importlib
import sys

from builder.errors import BuildError
from handler.faults import guarded

_COMMANDS = {
    "encoder": "encoders side by side: latency, ratio to the floor, memory",
    "accuracy": "official task measures and time per example, for ori, ths and thsext; the samples in every type",
    "serving": "load on TorchServe, on the other servers and on peers, by wrk",
    "bulk": "bulk scoring beside the engine in a loop, killed twice on the way",
    "figures": "the chart of the README and the plots of docs/benchmarks.md, drawn from result files",
    "summary": "an encoder result as tables: the product, its best peer, the floor",
    "tables": "the newest results' tables, put where a document has room for them",
    "compare": "two encoder results of one machine: by how much the ratios differ",
}


def main() -> int:
    """Run one command; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the product and its peers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if name in sys.argv[1:2]:  # the others' imports cost seconds, and some need packages of their own
            module = importlib.import_module(f"benchmarks.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args()
    try:
        options.run(options)
    except (ValueError, OSError, BuildError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded("benchmarks", main))
