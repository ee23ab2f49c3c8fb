"""What an encoder's work takes at the machine's own best rates, measured in the same process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import DTYPES
from benchmarks.tf32 import products_in, stored
from benchmarks.timing import Clock, interleave, once
from benchmarks.workloads import Workload
from builder.families import EncoderSpec
from builder.slots import matrices

_COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}
_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "int8": 1, "fp8": 1}
_CPU_ROWS = 512
_CPU_PRODUCTS = ((768, 2304), (768, 3072), (3072, 768))
"""(inputs, outputs) of BERT-base's products: with 512 rows they stay in the caches and run as fast as any."""
_REPEATS = 7


@dataclass(frozen=True)
class Ceilings:
    """The best rates seen: operations per second by type, and bytes per second of a copy (read and written)."""

    operations: dict[str, float]
    bytes: float

    def merged(self, other: Ceilings) -> Ceilings:
        """The best of two measurements, of the types that either has."""
        names = dict.fromkeys((*self.operations, *other.operations))
        best = {name: max(self.operations.get(name, 0), other.operations.get(name, 0)) for name in names}
        return Ceilings(best, max(self.bytes, other.bytes))

    def floor_ms(self, spec: EncoderSpec, workload: Workload, data_type: str) -> float | None:
        """Milliseconds of this encoder's arithmetic or of its weights' way from memory, the longer one, at the best
        rates seen; None for a type whose rate was not measured.

        An estimate, not a bound: weights that a cache keeps from the last call cost less than a copy.
        """
        rate = self.operations.get(data_type)
        if rate is None:
            return None
        weights = matrix_elements(spec) * _BYTES[data_type]
        return 1e3 * max(operations(spec, workload) / rate, weights / self.bytes)


def matrix_elements(spec: EncoderSpec) -> int:
    """Elements of all matrices."""
    return sum(slot.elements for slot in matrices(spec))


def operations(spec: EncoderSpec, workload: Workload) -> float:
    """Multiplications and additions on valid tokens: the products, and attention's two per pair of tokens."""
    pairs = sum(length**2 for length in workload.lengths)
    return 2.0 * matrix_elements(spec) * workload.tokens + 4.0 * spec.layers * spec.hidden * pairs


def measure(
    data_types: tuple[str, ...], device: str, synchronize: Callable[[], object], clock: Clock = time.perf_counter
) -> Ceilings:
    """Measure the ceilings of a device for the types that PyTorch has products of there."""
    products = _cpu_products if device == "cpu" else _gpu_products
    rates = {}
    for data_type in data_types:
        try:
            with products_in(data_type):
                found = [work / _best(call, device, synchronize, clock) for call, work in products(data_type)]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # oneDNN has no product of this type on this processor
            continue
        if found:
            rates[data_type] = max(found)
    return Ceilings(rates, copy_rate(device, synchronize, clock))


def copy_rate(device: str, synchronize: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.ones(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device, synchronize, clock)
    return 2 * source.numel() / seconds


def _best(call: Callable[[], object], device: str, synchronize: Callable[[], object], clock: Clock) -> float:
    """Seconds: on a CPU the least of some calls; on a GPU, whose clocks fall under load, the median of many."""
    if device == "cuda":
        return interleave({"": call}, 0.1)[""].median / 1e3
    once(call, synchronize)
    return min(once(call, synchronize, clock) for _ in range(_REPEATS))


def _cpu_products(data_type: str) -> list[tuple[Callable[[], Any], float]]:
    if data_type == "fp16":
        return []  # no product of its own on CPUs without fp16 arithmetic
    make = _quantised_product if data_type == "int8" else _onednn_product
    return [(make(data_type, k, n), 2.0 * _CPU_ROWS * k * n) for k, n in _CPU_PRODUCTS]


def _onednn_product(data_type: str, k: int, n: int) -> Callable[[], Tensor]:
    x = torch.randn(_CPU_ROWS, k).to(DTYPES[data_type])
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(n, k).to(DTYPES[data_type]))
    return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _quantised_product(_: str, k: int, n: int) -> Callable[[], Tensor]:
    x = torch.randint(0, 255, (_CPU_ROWS, k), dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 127, (n, k), dtype=torch.int8), None)
    scales, zeros = torch.full((n,), 0.01), torch.zeros(n, dtype=torch.int32)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        x, 0.01, 128, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _gpu_products(data_type: str) -> list[tuple[Callable[[], Any], float]]:
    size = 8192
    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    return [(_gpu_product(data_type, a, b), 2.0 * size**3)]


def _gpu_product(data_type: str, a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """Of random matrices; fp8 with one scale for each."""
    if data_type == "int8":
        integers = [(x * 30).round().clamp(-127, 127).to(torch.int8) for x in (a, b)]
        return lambda: torch._int_mm(integers[0], integers[1].t())
    if data_type == "fp8":
        numbers, one = [x.to(torch.float8_e4m3fn) for x in (a, b)], torch.ones((), device="cuda")
        return lambda: torch._scaled_mm(
            numbers[0], numbers[1].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    a, b = (x.to(DTYPES[stored(data_type)]) for x in (a, b))
    return lambda: a @ b
