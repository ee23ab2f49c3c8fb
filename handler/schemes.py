"""Quantisation schemes: what the worker and the builder have to know of each; a scheme is a row.

How a scheme's weights are made, and how the parity gate judges them, stands in ``builder/quantisation/schemes.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compute = Literal["fp32", "bf16", "fp16"]
"""What is added and normalised between the products, and the type of whatever a scheme leaves alone."""
SchemeName = Literal["none", "int8", "fp8"]


@dataclass(frozen=True)
class Scheme:
    """``compute``: the compute types it goes with, its default first."""

    compute: tuple[str, ...]
    devices: tuple[str, ...]
    fused_only: bool
    """Whether only the fused encoder has its products."""
    original: str | None = None
    """The type of the original beside it, which explanations differentiate; None: the compute type."""


SCHEMES: dict[str, Scheme] = {
    "none": Scheme(("fp32", "bf16", "fp16"), ("cpu", "cuda"), fused_only=False),
    "int8": Scheme(("bf16", "fp16"), ("cpu", "cuda"), fused_only=True, original="fp32"),
    # On a CPU its weights are multiplied in bf16, activations unrounded.
    "fp8": Scheme(("bf16", "fp16"), ("cpu", "cuda"), fused_only=True, original="fp32"),
}


def original_type(compute: str, scheme: str) -> str:
    """The type in which a checkpoint is kept beside, or instead of, the traced model."""
    return SCHEMES[scheme].original or compute
