"""Loads the model's file of an archive, whatever its format; ``builder/formats`` writes them.

A loaded module is called with ids, segments and mask, int64 [B, S] on its device, and keeps the names that its parts
had when it was written: nothing behind this package knows which format it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from handler.archive import ArchiveError, ArchiveFacts
from handler.errors import first_line
from handler.formats import export, torchscript
from handler.formats.weights import prepare

LOADERS: dict[str, Callable[[Path, torch.device], Any]] = {"torchscript": torchscript.load, "export": export.load}
"""By ``ModelFacts.format``; what they raise is an archive's fault."""


def load_module(folder: Path, facts: ArchiveFacts, device: torch.device) -> Any:
    """The module of an archive on a device, its encoder's weights prepared. Raises ArchiveError in one line."""
    module = load_file(folder / facts.model.file, facts.model.format, device)
    prepare(module, facts)
    return module


def load_file(path: Path, model_format: str, device: torch.device) -> Any:
    """The module in a file as it was written. Raises ArchiveError in one line that names the file."""
    if not path.exists():
        raise ArchiveError(f"{path.name} is missing from the archive; build it again")
    try:
        return LOADERS[model_format](path, device)
    except Exception as error:  # torch.export raises whatever a damaged file makes its parts raise
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"{path.name} does not load in torch {torch.__version__}: {first_line(error)}") from error
