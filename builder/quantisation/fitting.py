"""A matrix's factors and integers, fitted to the inputs of its product.

Factors decide what outliers an input keeps and what its weights take over (SmoothQuant, Xiao et al., 2023). Here they
are learned, as OmniQuant (Shao et al., 2024) does it, but of a formula for the expected error instead of training.
Integers are then chosen one input after the other, each making up for what those before it have rounded away (GPTQ,
Frantar et al., 2023). Neither costs anything when the model runs.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

_STEPS, _RATE = 40, 0.1
"""Of Adam on the logarithms of the factors."""
_TOKENS = 1024
"""So many of the inputs decide on factors; all decide on integers."""
_WEIGHTS = 0.5
"""How much the error of weights counts beside that of operands: :func:`compensated` makes up for a part of it, and it
is the same on every device."""
_DAMPING = 0.3
"""Of the mean square of the inputs: with less, integers fit a few thousand tokens rather than text."""
_FARTHEST = 4.0
"""No factor grows or shrinks by more: an input that hardly shows here may be large in other texts."""
_BLOCK = 64


def learned_factors(weight: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """Factors fp32 [inputs] with which a product errs least, found from ``start`` on.

    ``weight`` [outputs, inputs] fp32, ``inputs`` [tokens, inputs] any float type. Operands ``inputs * factors`` are
    rounded to 255 steps between a token's lowest and its highest value, weights ``weight / factors`` to 127 on either
    side with a scale per output; an error of rounding is taken to be even over a step, hence a twelfth of its square.
    """
    stride = max(1, len(inputs) // _TOKENS)
    x = inputs[::stride].float()
    of_weights, of_inputs = weight.square().sum(0), x.square().mean(0)
    first = start.log()
    logarithms = first.clone().requires_grad_()
    optimiser = torch.optim.Adam([logarithms], lr=_RATE)
    best, least = start, float("inf")
    for _ in range(_STEPS):
        with torch.enable_grad():
            factors = logarithms.exp()
            operands = x * factors
            ranges = operands.amax(1).clamp(min=0) - operands.amin(1).clamp(max=0)
            scales = (weight / factors).abs().amax(1)
            operand_error = (ranges / 255).square().mean() * (of_weights / factors.square()).sum()
            weight_error = (scales / 127).square().sum() * (of_inputs * factors.square()).sum()
            error = operand_error + _WEIGHTS * weight_error
            if not error > 0:  # nothing goes in, or nothing comes out
                return best
            optimiser.zero_grad()
            error.log().backward()  # type: ignore[no-untyped-call]
        if error.item() < least:
            best, least = factors.detach(), error.item()
        optimiser.step()
        with torch.no_grad():
            logarithms.clamp_(first - log(_FARTHEST), first + log(_FARTHEST))
    return best / best.log().mean().exp()


def compensated(spread: Tensor, scales: Tensor, operands: Tensor, largest: float) -> Tensor:
    """Integers [outputs, inputs], as fp32, for ``spread / scales``, so that products with ``operands`` err least.

    ``spread`` [outputs, inputs] and ``scales`` [outputs] fp32, ``operands`` [tokens, inputs]. Inputs are taken from the
    largest to the smallest; what rounding one does to the products goes over to the weights that are still to come.
    """
    moments = operands.T @ operands
    most = moments.diagonal().mean()
    if not (most > 0 and bool(most.isfinite())):
        return (spread / scales[:, None]).round().clamp(-largest, largest)
    moments.diagonal().add_(_DAMPING * most)
    order = moments.diagonal().argsort(descending=True, stable=True)
    left = spread[:, order].clone()
    moments = moments[order][:, order].double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    numbers = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        end = min(start + _BLOCK, left.shape[1])
        errors = torch.empty(len(left), end - start)
        for column in range(start, end):
            number = (left[:, column] / scales).round().clamp(-largest, largest)
            error = (left[:, column] - number * scales) / upper[column, column]
            left[:, column + 1 : end] -= error[:, None] * upper[column, column + 1 : end]
            numbers[:, column], errors[:, column - start] = number, error
        left[:, end:] -= errors @ upper[start:end, end:]
    return numbers[:, order.argsort()]
