"""The padding-free encoder: a checkpoint's encoder weights packed into two arenas behind one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from builder.errors import BuildError
from builder.families import EncoderSpec, Family
from builder.slots import Slot, slots


@dataclass(frozen=True)
class PackedWeights:
    """What ``efft::encode`` takes as its weights, in its order.

    The embedding tables [rows, E] and ``matrices`` are in the compute type, ``vectors`` in fp32; the arenas' layout is
    that of ``builder.slots``. On a CPU ``matrices`` may be the 8-bit form of ``kernels/include/efft/quantised.h``.
    """

    word: Tensor
    position: Tensor
    segment: Tensor
    matrices: Tensor
    vectors: Tensor


_NAMES = tuple(field.name for field in fields(PackedWeights))


class PackedEncoder(nn.Module):
    """``torch.ops.efft.encode`` with its weights.

    ``forward(ids, segments, mask)`` takes int64 [B, S] and returns, in the compute type, every token's last hidden
    state [B, S, H] (``output="hidden"``, zeros on pads), the first token's [B, H] (``"first"``) or the mean over
    the valid tokens [B, H] (``"mean"``). Technique: padding removal as in "Effective Transformer" (ByteDance, 2020).
    """

    def __init__(self, spec: EncoderSpec, weights: PackedWeights, output: str) -> None:
        super().__init__()
        self.spec = spec
        self.output = output
        for name in _NAMES:
            self.register_buffer(name, getattr(weights, name))

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """Encode a padded batch; see the class."""
        return encode(self.spec, self, (ids, segments, mask), self.output)


def encode(spec: EncoderSpec, weights: Any, inputs: tuple[Tensor, Tensor, Tensor], output: str) -> Tensor:
    """Call the operator on ids, segments and mask, int64 [B, S]; for ``output`` see PackedEncoder.

    ``weights`` carries the tables and arenas by their names: a module, a loaded one, or PackedWeights.
    """
    return torch.ops.efft.encode(*inputs, [getattr(weights, name) for name in _NAMES], spec.text(), output)


def prepare(spec: EncoderSpec, weights: Any) -> PackedWeights:
    """The weights in the form their device likes best; ``weights`` as ``encode`` takes them."""
    return PackedWeights(*torch.ops.efft.prepare_weights([getattr(weights, name) for name in _NAMES], spec.text()))


def pack(state: Mapping[str, Tensor], family: Family, spec: EncoderSpec, dtype: torch.dtype) -> PackedWeights:
    """Pack an encoder's ``state_dict`` (names without the model's prefix).

    Raises BuildError naming the first weight that is missing or has another shape than the config says.
    """
    tables, matrices, vectors = [], [], []
    for slot in slots(spec):
        if slot.kind == "table":
            absent = slot.name == "segment" and not family.segments
            tables.append((torch.zeros(1, slot.columns) if absent else _stacked(state, family, slot)).to(dtype))
        elif slot.kind == "matrix":
            matrices.append(_stacked(state, family, slot).reshape(-1).to(dtype))
        else:
            vectors.append(_stacked(state, family, slot).float())
    word, position, segment = tables
    return PackedWeights(word, position, segment, torch.cat(matrices), torch.cat(vectors))


def _stacked(state: Mapping[str, Tensor], family: Family, slot: Slot) -> Tensor:
    """A slot's weights, of one module or of several on top of each other."""
    modules = family.modules(slot.module, slot.layer)
    part = "bias" if slot.name.endswith((".bias", ".beta")) else "weight"
    rows = slot.rows // len(modules)
    shape = (rows,) if slot.kind == "vector" else (rows, slot.columns)
    return torch.cat([_read(state, f"{module}.{part}", shape, any_rows=slot.kind == "table") for module in modules])


def _read(state: Mapping[str, Tensor], name: str, shape: tuple[int, ...], *, any_rows: bool) -> Tensor:
    if name not in state:
        raise BuildError(f"the checkpoint has no weight {name!r}; is it of another family than its config says?")
    weight = state[name].detach()
    expected = (weight.shape[0], *shape[1:]) if any_rows and weight.dim() else shape
    if tuple(weight.shape) != expected:
        raise BuildError(f"weight {name!r} has shape {tuple(weight.shape)}, the config says {expected}")
    return weight
