"""Shape functions ("fakes") of the operators in ``kernels/torch/schema.cpp``, for torch.export and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_registered: set[str] = set()


def register() -> None:
    """Register the fake of every operator that this process has loaded and that has none yet."""
    for name, fake in _FAKES.items():
        if name not in _registered and hasattr(torch.ops.efft, name):
            torch.library.register_fake(f"efft::{name}")(fake)
            _registered.add(name)


def _encode(ids: Tensor, segments: Tensor, mask: Tensor, weights: list[Tensor], spec: str, output: str) -> Tensor:
    hidden = next(int(word.partition("=")[2]) for word in spec.split(" ") if word.startswith("hidden="))
    sequences = ids.shape[0] if ids.dim() == 2 else mask.shape[0] - 1  # packed: see kernels/torch/schema.cpp
    return weights[0].new_empty((*ids.shape, hidden) if output == "hidden" else (sequences, hidden))


def _prepare_weights(weights: list[Tensor], spec: str) -> list[Tensor]:
    *tables, matrices, vectors = weights
    return [*tables, _prepared(matrices), vectors]


def _encoder(
    ids: Tensor, segments: Tensor, mask: Tensor, word: Tensor, position: Tensor, segment: Tensor, matrices: Tensor,
    vectors: Tensor, layers: int, hidden: int, heads: int, intermediate: int, activation: str, pre_norm: bool,
    epsilon: float, position_offset: int, count_positions: bool, output: str,
) -> Tensor:  # fmt: skip
    shape = (*ids.shape, hidden) if output == "hidden" else (ids.shape[0], hidden)
    return word.new_empty(shape)


def _prepared(matrices: Tensor, *_: object) -> Tensor:
    """Bytes on a CPU, the matrices' own type on a GPU; how many is for the device to say."""
    size = torch.library.get_ctx().new_dynamic_size()
    return matrices.new_empty(size, dtype=torch.uint8 if matrices.device.type == "cpu" else matrices.dtype)


_FAKES: dict[str, Callable[..., Any]] = {
    "encode": _encode,
    "prepare_weights": _prepare_weights,
    "encoder": _encoder,
    "prepare": _prepared,
}
