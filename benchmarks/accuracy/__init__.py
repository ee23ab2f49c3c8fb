"""``python -m benchmarks accuracy``: official measures and time per example over the handler's own code path."""

from benchmarks.accuracy.command import add_arguments, run

__all__ = ["add_arguments", "run"]
