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
    torch.library.register_fake("efft::encode")(_encode)
    torch.library.register_fake("efft::prepare_weights")(_prepare_weights)
    torch.library.register_fake("efft::encoder")(_encoder)
    torch.library.register_fake("efft::prepare")(_prepared)
    _loaded = True


def ensure_loaded() -> None:
    """Compile the CPU library and load it unless one is. Raises BuildError as compiling does."""
    if _loaded or hasattr(torch.ops.efft, "slots"):
        return
    from builder.compile import compile_cpu

    load(compile_cpu())


def _encode(ids: Tensor, segments: Tensor, mask: Tensor, weights: list[Tensor], spec: str, output: str) -> Tensor:
    hidden = next(int(word.partition("=")[2]) for word in spec.split(" ") if word.startswith("hidden="))
    return weights[0].new_empty((*ids.shape, hidden) if output == "hidden" else (ids.shape[0], hidden))


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
