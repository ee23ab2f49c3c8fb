"""What rounding to 8 bits does to an encoder, in plain PyTorch: the checkpoint's own modules with rounded weights, and
inputs rounded as the kernels round them. For types that this machine's processor does not multiply."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from builder.checkpoint import Checkpoint
from builder.quantisation.quantise import Number, Rounded, Rounder

_TINY = 1e-30


@contextmanager
def emulated(
    checkpoint: Checkpoint,
    base: nn.Module,
    rounder: Rounder,
    keep: Collection[str],
    results: torch.dtype = torch.float32,
) -> Iterator[None]:
    """While it lasts, ``base`` (the checkpoint's encoder as transformers has it) computes as the rounded encoder would,
    those matrices excepted whose slots are named in ``keep``. What products and LayerNorms make is rounded to the type
    ``results``, as where the residual stream is of it."""
    undo: list[Any] = []
    try:
        if results is not torch.float32:
            for module in base.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm):
                    handle = module.register_forward_hook(
                        lambda _module, _inputs, made: made.to(results).to(made.dtype)
                    )
                    undo.append(handle.remove)
        for slot in rounder.slots:
            if slot.name in keep:
                continue
            rounded = rounder.rounded(slot.name)
            modules: list[Any] = [base.get_submodule(path) for path in checkpoint.family.modules(slot.name, slot.layer)]
            rows = [len(module.weight) for module in modules]  # of grouped queries, keys and values have fewer
            for module, weight in zip(modules, rounded.weight.split(rows), strict=True):
                undo.append(_replace(module, weight))
                handle = module.register_forward_pre_hook(
                    lambda _module, inputs, rounded=rounded: (operand(inputs[0], rounded, rounder.number), *inputs[1:])
                )
                undo.append(handle.remove)
        yield
    finally:
        for step in reversed(undo):
            step()


def _replace(module: Any, weight: Tensor) -> Any:
    original = module.weight.data
    module.weight.data = weight.to(original.dtype)

    def back() -> None:
        module.weight.data = original

    return back


def operand(x: Tensor, matrix: Rounded, number: Number) -> Tensor:
    """The input of a product [..., inputs] as the kernels round it."""
    spread = x.float() * matrix.factors
    if matrix.step is not None and number.dtype is torch.int8:
        fixed = matrix.step
        rounded = ((spread / fixed.size + fixed.zero).round().clamp(0, 255) - fixed.zero) * fixed.size
    elif matrix.step is not None:
        rounded = number.rounded(spread / matrix.step.size) * matrix.step.size
    elif number.dtype is torch.int8:  # unsigned over the row's own range
        low, high = spread.amin(-1, keepdim=True).clamp(max=0), spread.amax(-1, keepdim=True).clamp(min=0)
        step = ((high - low) / 255).clamp(min=_TINY)
        zero = (-low / step).round()
        rounded = ((spread / step + zero).round().clamp(0, 255) - zero) * step
    else:
        step = (spread.abs().amax(-1, keepdim=True) / number.largest).clamp(min=_TINY)
        rounded = number.rounded(spread / step) * step
    return (rounded / matrix.factors).to(x.dtype)
