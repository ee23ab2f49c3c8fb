"""Factors and integers that are fitted to inputs: they err less on other inputs of the same kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from builder.quantisation.emulated import operand
from builder.quantisation.fitting import compensated, learned_factors
from builder.quantisation.quantise import NUMBERS, Rounded

INT8 = NUMBERS["int8"]
OUTPUTS, INPUTS, TOKENS = 48, 64, 400


@pytest.fixture
def sized() -> Callable[[int], Tensor]:
    """Inputs that hang together, with a few that are far larger than the rest, as behind a LayerNorm."""
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(INPUTS // 4, INPUTS, generator=generator)
    sizes = torch.ones(INPUTS)
    sizes[[5, 40]] = 25.0

    def draw(tokens: int) -> Tensor:
        common = torch.randn(tokens, INPUTS // 4, generator=generator) @ mixed
        return (common / 4 + 0.3 * torch.randn(tokens, INPUTS, generator=generator)) * sizes

    return draw


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(4))


def _scales(spread: Tensor) -> Tensor:
    return spread.abs().amax(1) / INT8.largest


def _error(weight: Tensor, factors: Tensor, x: Tensor) -> float:
    """Of the product with both sides rounded to the nearest."""
    scales = _scales(weight / factors)
    numbers = INT8.rounded(weight / factors / scales[:, None])
    rounded = Rounded(numbers.to(torch.int8), scales, factors)
    exact = x @ weight.T
    return float((operand(x, rounded, INT8) @ rounded.weight.T - exact).norm() / exact.norm())


def test_learned_factors_err_less_than_those_that_they_start_from(
    sized: Callable[[int], Tensor], weight: Tensor
) -> None:
    start, others = torch.ones(INPUTS), sized(TOKENS)
    factors = learned_factors(weight, sized(TOKENS), start)
    assert _error(weight, factors, others) < 0.8 * _error(weight, start, others)
    assert factors[[5, 40]].max() < factors.median()
    assert (factors.max() / factors.min()) <= 4.0**2 * 1.001, "what hardly shows here may be large elsewhere"


@pytest.mark.parametrize("inputs", [torch.zeros(9, INPUTS), torch.zeros(0, INPUTS)], ids=["zeros", "none"])
def test_inputs_that_say_nothing_change_nothing(inputs: Tensor, weight: Tensor) -> None:
    start, scales = torch.full((INPUTS,), 2.0), _scales(weight)
    factors = learned_factors(weight, inputs, start)
    assert factors.isfinite().all()
    nearest = INT8.rounded(weight / scales[:, None])
    assert torch.equal(compensated(weight, scales, inputs, INT8.largest), nearest)


def test_integers_make_up_for_what_is_rounded_away(sized: Callable[[int], Tensor], weight: Tensor) -> None:
    scales, x, others = _scales(weight), sized(TOKENS), sized(TOKENS)
    nearest = INT8.rounded(weight / scales[:, None])
    found = compensated(weight, scales, x, INT8.largest)
    assert torch.equal(found, found.round())
    assert found.abs().max() <= INT8.largest

    def error(numbers: Tensor) -> float:
        return float((others @ (numbers * scales[:, None] - weight).T).norm())

    assert error(found) < 0.8 * error(nearest)
    assert torch.equal(found, compensated(weight, scales, x, INT8.largest)), "an archive is built alike each time"
