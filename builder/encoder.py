"""The padding-free encoder: a checkpoint's encoder weights packed into two arenas behind one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from builder.errors import BuildError
from builder.families import EncoderSpec, Family
from builder.families.family import State
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


NAMES = tuple(field.name for field in fields(PackedWeights))


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
        for name in NAMES:
            self.register_buffer(name, getattr(weights, name))

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """Encode a padded batch; see the class."""
        return encode(self.spec, self, (ids, segments, mask), self.output)


def encode(spec: EncoderSpec, weights: Any, inputs: tuple[Tensor, Tensor, Tensor], output: str) -> Tensor:
    """Call the operator on ids, segments and mask, int64 [B, S]; for ``output`` see PackedEncoder.

    ``weights`` carries the tables and arenas by their names: a module, a loaded one, or PackedWeights.
    """
    return torch.ops.efft.encode(*inputs, [getattr(weights, name) for name in NAMES], spec.text(), output)


def prepare(spec: EncoderSpec, weights: Any) -> PackedWeights:
    """The weights in the form their device likes best; ``weights`` as ``encode`` takes them."""
    return PackedWeights(*torch.ops.efft.prepare_weights([getattr(weights, name) for name in NAMES], spec.text()))


def tensors_of(encoder: nn.Module) -> State:
    """An encoder's tensors by name: its ``state_dict()``, and the buffers that no file holds, such as frequencies."""
    return {**dict(encoder.named_buffers()), **encoder.state_dict()}


def pack(state: Mapping[str, Tensor], family: Family, spec: EncoderSpec, dtype: torch.dtype) -> PackedWeights:
    """Pack an encoder's tensors (``tensors_of``; names without the model's prefix).

    Raises BuildError naming the first weight that is missing or has another shape than the config says.
    """
    tables: dict[str, Tensor] = {}
    matrices, vectors = [], []
    folded = family.fold(dict(state), spec)
    for slot in slots(spec):
        weight = _weight(folded, family, spec, slot)
        if slot.kind == "table":
            tables[slot.name] = weight.to(dtype)
        elif slot.kind == "matrix":
            matrices.append(weight.reshape(-1).to(dtype))
        else:
            vectors.append(weight.float().reshape(-1))
    for name in ("position", "segment"):
        tables.setdefault(name, torch.zeros(0, spec.width, dtype=dtype))
    return PackedWeights(**tables, matrices=torch.cat(matrices), vectors=torch.cat(vectors))


def _weight(state: State, family: Family, spec: EncoderSpec, slot: Slot) -> Tensor:
    """What a slot holds: a tensor of its own, a row of zeros for segments that there are none of, or modules' weights
    stacked."""
    name = family.tensor(slot.name, slot.layer)
    if name is not None:
        return _read(state, name, _shape(slot, slot.rows), any_rows=False)
    if slot.name == "segment" and not family.segments:
        return torch.zeros(1, slot.columns)
    return _stacked(state, family, spec, slot)


def _stacked(state: State, family: Family, spec: EncoderSpec, slot: Slot) -> Tensor:
    """A slot's weights, of one module or of several on top of each other."""
    modules = family.modules(slot.module, slot.layer)
    part = "bias" if slot.name.endswith((".bias", ".beta")) else "weight"
    pieces = []
    for module, rows in zip(modules, _rows(spec, slot, len(modules)), strict=True):
        name = f"{module}.{part}"
        if part == "bias" and family.bare and name not in state:
            pieces.append(torch.zeros(rows))
        else:
            pieces.append(_read(state, name, _shape(slot, rows), any_rows=slot.kind == "table"))
    return torch.cat(pieces)


def _rows(spec: EncoderSpec, slot: Slot, count: int) -> list[int]:
    """The rows of each of the modules in a slot; of grouped queries those of keys and values are fewer."""
    if count == 3 and spec.kv_heads is not None:
        size = spec.kv_heads * spec.head_size
        return [spec.context, size, size]
    return [slot.rows // count] * count


def _shape(slot: Slot, rows: int) -> tuple[int, ...]:
    return (rows,) if slot.kind == "vector" else (rows, slot.columns)


def _read(state: State, name: str, shape: tuple[int, ...], *, any_rows: bool) -> Tensor:
    if name not in state:
        raise BuildError(f"the checkpoint has no weight {name!r}; is it of another family than its config says?")
    weight = state[name].detach()
    if len(shape) == 1:
        weight = weight.reshape(-1) if weight.numel() == shape[0] else weight
    expected = (weight.shape[0], *shape[1:]) if any_rows and weight.dim() else shape
    if tuple(weight.shape) != expected:
        raise BuildError(f"weight {name!r} has shape {tuple(weight.shape)}, the config says {expected}")
    return weight
