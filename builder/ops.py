"""Shape functions ("fakes") of the operators in ``kernels/torch/schema.cpp``, for torch.export and torch.compile."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

_loaded = False


def load(library: Path) -> None:
    """Register the operators of ``library`` with torch, once per process, and their fakes beside them."""
    global _loaded
    if _loaded:
        return
    torch.ops.load_library(str(library))
    torch.library.register_fake("efft::encoder")(_encoder)
    torch.library.register_fake("efft::prepare")(_same)
    torch.library.register_fake("efft::unpad")(_unpad)
    torch.library.register_fake("efft::embed_norm")(_embed_norm)
    torch.library.register_fake("efft::attention")(_attention)
    torch.library.register_fake("efft::add_norm")(_same)
    torch.library.register_fake("efft::bias_activation")(_same)
    _loaded = True


def _encoder(
    ids: Tensor, segments: Tensor, mask: Tensor, word: Tensor, position: Tensor, segment: Tensor, matrices: Tensor,
    vectors: Tensor, layers: int, hidden: int, heads: int, intermediate: int, activation: str, pre_norm: bool,
    epsilon: float, position_offset: int, count_positions: bool, output: str,
) -> Tensor:  # fmt: skip
    shape = (*ids.shape, hidden) if output == "hidden" else (ids.shape[0], hidden)
    return word.new_empty(shape)


def _same(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _unpad(mask: Tensor) -> tuple[Tensor, Tensor]:
    batch, length = mask.shape
    return mask.new_empty(batch + 1, dtype=torch.int32), mask.new_empty(batch * length, dtype=torch.int32)


def _embed_norm(
    ids: Tensor, segments: Tensor, mask: Tensor, word: Tensor, position: Tensor, segment: Tensor, gamma: Tensor,
    beta: Tensor, epsilon: float, position_offset: int, count_positions: bool,
) -> Tensor:  # fmt: skip
    tokens = torch.library.get_ctx().new_dynamic_size()
    return word.new_empty(tokens, word.shape[1])


def _attention(qkv: Tensor, bias: Tensor, cu_seqlens: Tensor, heads: int, max_length: int) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
