"""Whether an engine computes the same function: its error against float64 and the cosines that users feel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ALLOWED_RATIO = 2.0
FLOOR = 2.0**-21
"""Relative error that always passes: four roundings of fp32."""
QUANTISED_COSINES = {"int8": 0.998, "fp8": 0.98}
"""Worst mean-pooled cosine at which an engine in 8 bits still counts as computing the same encoder. Of int8 it is what
the builder asks of an archive; random weights have no structure that would level the four bits of fp8's numbers. One
that ignores the mask or lacks a layer reaches neither."""


@dataclass(frozen=True)
class Deviation:
    """How far an output is from the float64 reference, over valid tokens only."""

    error: float
    """Root mean square error relative to the reference's root mean square."""
    token_cosine: float
    """The worst token's cosine."""
    pooled_cosine: float
    """The worst sequence's cosine after mean pooling."""

    def refusal(self, data_type: str, plain_error: float | None) -> str | None:
        """Why the output may not be used, None when it may.

        ``plain_error`` is plain PyTorch's own error at the same type; flash-attention's tests allow twice that. A
        type that PyTorch has no plain form of (int8) is judged by its cosines.
        """
        if plain_error is None:
            least = QUANTISED_COSINES[data_type]
            if self.pooled_cosine >= least:
                return None
            return f"{data_type} pooled cosine {self.pooled_cosine:.3f} is below {least}"
        allowed = max(ALLOWED_RATIO * plain_error, FLOOR)
        if self.error <= allowed:
            return None
        return f"error {self.error:.1e} against float64, allowed {allowed:.1e}"


def deviation(output: Tensor, expected: Tensor, lengths: tuple[int, ...]) -> Deviation:
    """Compare valid tokens [tokens, H] with the float64 reference of the same shape.

    Raises ValueError when the shapes differ.
    """
    if output.shape != expected.shape:
        raise ValueError(f"the output has shape {tuple(output.shape)}, the reference {tuple(expected.shape)}")
    given = output.double()
    difference = (given - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    pooled = [
        torch.cosine_similarity(a.mean(0), b.mean(0), dim=0)
        for a, b in zip(given.split(lengths), expected.split(lengths), strict=True)
    ]
    tokens = torch.cosine_similarity(given, expected, dim=1)
    return Deviation(float(difference), float(tokens.min()), float(torch.stack(pooled).min()))
