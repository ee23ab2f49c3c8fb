"""``python -m benchmarks report``: plots and one static page, drawn from result files."""

from benchmarks.report.command import add_arguments, run

__all__ = ["add_arguments", "run"]
