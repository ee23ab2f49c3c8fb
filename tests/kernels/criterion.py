"""How close an operator must come: at most twice the error that plain PyTorch makes at the same precision.

The criterion is that of the flash-attention project's tests. A tiny absolute floor stands in where PyTorch's own
error happens to be zero or a single rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = {torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""A rounding error at magnitude 1, absolute."""


def assert_close(actual: Tensor, plain: Tensor, truth: Tensor) -> None:
    """``plain`` and ``actual`` share a type, ``truth`` is float64; all have one shape."""
    assert actual.dtype == plain.dtype
    assert actual.shape == plain.shape == truth.shape
    assert torch.isfinite(actual).all()
    ours = (actual.double().cpu() - truth).abs()
    theirs = (plain.double().cpu() - truth).abs()
    if not truth.numel():
        return
    floor = FLOOR[actual.dtype]
    assert ours.max() <= 2 * theirs.max() + floor, f"worst error {ours.max():.3g}, PyTorch's {theirs.max():.3g}"
    assert ours.mean() <= 2 * theirs.mean() + floor / 8, f"mean error {ours.mean():.3g}, PyTorch's {theirs.mean():.3g}"
