"""The row kernels against the copy rate, at the sizes of a batch of 32 x 384 for BERT-base, operands not in cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.libraries import load_parts
from benchmarks.timing import captured, interleave
from benchmarks.workloads import make_workload

COPIES = 24
"""Sets of operands that take turns, so that none is still in the L2 cache when its turn comes again."""


def measure(dtype: torch.dtype, copy_rate: float) -> dict[str, dict[str, float]]:
    """Microseconds and share of the copy rate of each row kernel, launched as within the encoder."""
    tokens, hidden = make_workload("32x384", "rand_r").tokens, 768
    bytes_of = dtype.itemsize

    def random(*size: int) -> Tensor:
        return torch.randn(size, device="cuda").to(dtype)

    gamma, beta, wide = (torch.randn(n, device="cuda") for n in (hidden, hidden, 4 * hidden))
    rows = [(random(tokens, hidden), random(tokens, hidden)) for _ in range(COPIES)]
    intermediates = [random(tokens, 4 * hidden) for _ in range(COPIES)]
    load_parts()
    parts = torch.ops.efft_test
    cases: dict[str, tuple[Callable[[int], Tensor], int]] = {
        "add_norm": (lambda i: parts.add_norm(*_norm_arguments(rows[i], gamma, beta)), 3 * tokens * hidden * bytes_of),
        "bias_activation": (
            lambda i: parts.bias_activation(intermediates[i], wide, "gelu"),
            2 * tokens * 4 * hidden * bytes_of,
        ),
    }
    results = {}
    for name, (call, moved) in cases.items():
        replay = captured(partial(_take_turns, call))
        microseconds = interleave({name: replay})[name].median * 1e3 / COPIES
        results[name] = {"microseconds": microseconds, "share_of_copy_rate": moved / microseconds * 1e6 / copy_rate}
    return results


def _take_turns(call: Callable[[int], Tensor]) -> None:
    for index in range(COPIES):
        call(index)


def _norm_arguments(row: tuple[Tensor, Tensor], gamma: Tensor, beta: Tensor) -> tuple[object, ...]:
    x, residual = row
    return x, beta, residual, gamma, beta, 1e-12, True
