"""Writes a model's file; ``handler/formats`` loads it. A format is a row here, a loader there and its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from builder.formats.export import save_export
from builder.formats.torchscript import save_torchscript

WRITERS: dict[str, Callable[[nn.Module, tuple[Tensor, ...], Path], None]] = {
    "torchscript": save_torchscript,
    "export": save_export,
}
"""By ``SetupConfig.format``. Each takes a module, example inputs and the file's path."""
