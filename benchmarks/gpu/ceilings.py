"""What this device can do at best, measured: matrix arithmetic and copying."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.tf32 import products_in, stored
from benchmarks.gpu.timing import interleave
from benchmarks.models import DTYPES


def matrix_rate(data_type: str, size: int = 8192) -> float:
    """Operations per second of a large square product of random matrices; fp8 with one scale for each."""
    if data_type in ("int8", "fp8"):
        time = interleave({"product": _eight_bit_product(data_type, size)}, milliseconds=100)["product"].median
        return 2.0 * size**3 / time * 1e3
    a, b = (torch.randn(size, size, device="cuda").to(DTYPES[stored(data_type)]) for _ in range(2))
    with products_in(data_type):
        time = interleave({"product": lambda: a @ b}, milliseconds=100)["product"].median
    return 2.0 * size**3 / time * 1e3


def _eight_bit_product(data_type: str, size: int) -> Callable[[], Tensor]:
    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    if data_type == "int8":
        integers = [(x * 30).round().clamp(-127, 127).to(torch.int8) for x in (a, b)]
        return lambda: torch._int_mm(integers[0], integers[1].t())
    numbers, one = [x.to(torch.float8_e4m3fn) for x in (a, b)], torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(
        numbers[0], numbers[1].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def copy_rate(megabytes: int = 2048) -> float:
    """Bytes per second of a large copy, counting those read and those written."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    time = interleave({"copy": lambda: target.copy_(source)}, milliseconds=100)["copy"].median
    return 2.0 * source.numel() / time * 1e3
