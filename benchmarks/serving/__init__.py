"""``python -m benchmarks serving``: open-loop load on a running server, rate by rate."""

from benchmarks.serving.command import add_arguments, run

__all__ = ["add_arguments", "run"]
