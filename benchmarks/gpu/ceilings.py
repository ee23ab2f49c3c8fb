"""What this device can do at best, measured: matrix arithmetic and copying."""

from __future__ import annotations

import torch

from benchmarks.gpu.tf32 import products_in, stored
from benchmarks.gpu.timing import interleave
from benchmarks.models import DTYPES


def matrix_rate(data_type: str, size: int = 8192) -> float:
    """Operations per second of a large square product of random matrices."""
    a, b = (torch.randn(size, size, device="cuda").to(DTYPES[stored(data_type)]) for _ in range(2))
    with products_in(data_type):
        time = interleave({"product": lambda: a @ b}, milliseconds=100)["product"].median
    return 2.0 * size**3 / time * 1e3


def copy_rate(megabytes: int = 2048) -> float:
    """Bytes per second of a large copy, counting those read and those written."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    time = interleave({"copy": lambda: target.copy_(source)}, milliseconds=100)["copy"].median
    return 2.0 * source.numel() / time * 1e3
