"""Whether a checkpoint's values fit fp16, and where they first do not: trained in bf16 or fp32, some encoders carry
values beyond 65,504 in their residual stream or make them in a product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from builder.checkpoint import Checkpoint
from builder.families import spec_of
from builder.gate.probes import probes
from builder.models import encoder_of
from builder.quantisation.calibration import hidden_states
from builder.slots import slots

LARGEST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class Beyond:
    """The first value, in the order of computation, that fp16 cannot hold."""

    where: str
    magnitude: float
    probe: str
    further: int = 0
    """How many other places leave the range on that probe."""

    def line(self) -> str:
        """In a line for the user."""
        return (
            f"{self.where} reaches {self.magnitude:,.0f} on {self.probe}, fp16 ends at {LARGEST:,.0f}"
            + (f" ({self.further} further places leave it too)" if self.further else "")
            + ": products, the residual stream and what lies between are kept in bf16, whose range is fp32's"
        )


def first_beyond(checkpoint: Checkpoint) -> Beyond | None:
    """The first product, or sum with the residual, of the gate's probes that leaves fp16's range; None: none does.

    Computed in fp32 by the checkpoint's own modules. A value that is no number in fp32 either is not this one's matter.
    """
    base = encoder_of(checkpoint, checkpoint.load_model())
    seen: list[tuple[str, float]] = []
    valid = torch.empty(0)

    def note(where: str, values: Tensor) -> None:
        largest = float(values[valid].abs().max()) if values.dim() == valid.dim() + 1 else float(values.abs().max())
        seen.append((where, largest))

    handles = []
    for name, module, sums in _watched(checkpoint, base):
        if sums:
            handle = module.register_forward_pre_hook(lambda _m, given, name=name: note(name, given[0]))
        else:
            handle = module.register_forward_hook(lambda _m, _given, made, name=name: note(name, made))
        handles.append(handle)
    try:
        for probe, inputs in probes(checkpoint):
            seen.clear()
            valid = inputs[2].bool()
            hidden_states(checkpoint, base, inputs)
            beyond = {where: magnitude for where, magnitude in reversed(seen) if LARGEST < magnitude < float("inf")}
            if beyond:
                *others, first = beyond
                return Beyond(first, beyond[first], probe, len(others))
    finally:
        for handle in handles:
            handle.remove()
    return None


def _watched(checkpoint: Checkpoint, base: nn.Module) -> list[tuple[str, Any, bool]]:
    """Products by what they make, LayerNorms by what they are given: name, module, which of the two."""
    found: dict[str, tuple[str, Any, bool]] = {}
    for slot in slots(spec_of(checkpoint.config)):
        name = slot.module
        shown = name if slot.layer < 0 else f"layer.{name}"
        if slot.kind == "matrix":
            for path in checkpoint.family.modules(name, slot.layer):
                found[path] = (shown, base.get_submodule(path), False)
        elif slot.name.endswith(".gamma"):
            for path in checkpoint.family.modules(name, slot.layer):
                found[path] = (f"the sum before {shown}", base.get_submodule(path), True)
    return list(found.values())
