"""The weights of an encoder: names, order and places, as the operators' library lists them.

The list is made by ``kernels/core/weights.cpp`` and asked for here, not written again: packing, quantising,
calibrating, tuning and counting floors all go through these slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from builder import ops
from builder.families.spec import EncoderSpec


@dataclass(frozen=True)
class Slot:
    """One weight; the fields are those of ``kernels/include/efft/weights.h``."""

    name: str
    kind: str
    """``table``, ``matrix`` or ``vector``."""
    rows: int
    """Of tables 0: any number."""
    columns: int
    offset: int
    """In elements, within the arena of its kind."""
    layer: int
    """-1 outside the layers."""
    feed: str
    """Of matrices, what makes their input: ``norm``, ``product``, ``attention`` or ``activation``."""
    fed_by: str
    """Its name: a LayerNorm's, whose vectors are ``NAME.gamma`` and ``NAME.beta``, or a matrix's."""

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return self.rows * self.columns

    @cached_property
    def module(self) -> str:
        """The name without a vector's part: ``3.qkv`` of ``3.qkv.bias``."""
        return self.name.rpartition(".")[0] if self.kind == "vector" else self.name

    def of(self, arena: Tensor) -> Tensor:
        """This slot within its flat arena: a view, [rows, columns] of a matrix, [rows] of a vector."""
        piece = arena[self.offset : self.offset + self.elements]
        return piece.view(self.rows, self.columns) if self.kind == "matrix" else piece


def slots(spec: EncoderSpec) -> tuple[Slot, ...]:
    """All weights, the tables first. Raises RuntimeError in one line for a spec that no engine can run."""
    return _slots(spec.text())


def matrices(spec: EncoderSpec) -> tuple[Slot, ...]:
    """The matrices in the arena's order."""
    return tuple(slot for slot in slots(spec) if slot.kind == "matrix")


@cache
def _slots(text: str) -> tuple[Slot, ...]:
    ops.ensure_loaded()
    found = []
    for line in torch.ops.efft.slots(text).splitlines():
        name, kind, rows, columns, offset, layer, feed, fed_by = line.split(" ")
        found.append(Slot(name, kind, int(rows), int(columns), int(offset), int(layer), feed, fed_by))
    return tuple(found)
