"""TorchScript: ``model.pt``. Deprecated upstream since torch 2.10, in favour of torch.export."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def without_deprecation() -> Iterator[None]:
    """Around a call of torch.jit's: it says of itself that it is deprecated, which the product's user cannot mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        yield


def load(path: Path, device: torch.device) -> Any:
    """The module in a file, in evaluation mode. Raises RuntimeError where it holds none."""
    with without_deprecation():
        module = torch.jit.load(str(path), map_location=device)
    return module.train(False)
