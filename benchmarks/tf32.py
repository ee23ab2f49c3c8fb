"""The type "tf32": fp32 whose products may round their inputs to tf32, as ``allow_tf32`` lets PyTorch's and ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stored(data_type: str) -> str:
    """The type of weights and results."""
    return "fp32" if data_type == "tf32" else data_type


@contextmanager
def products_in(data_type: str) -> Iterator[None]:
    """Within it tf32 is allowed in products where ``data_type`` says so, and nowhere else."""
    torch.backends.cuda.matmul.allow_tf32 = data_type == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
