"""What others offer by these names and this builder does not, and what it would cost a checkpoint.

*Mode 2* of FasterTransformer's int8 BERT: the residual stream too is integers, with one step for a whole tensor.
*2:4* sparsity: of each four neighbouring weights two are zero. Both are emulated by the checkpoint's own modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from builder.checkpoint import Checkpoint
from builder.errors import BuildError
from builder.families import spec_of
from builder.gate.probes import Inputs
from builder.gate.verdict import POOLED_COSINE, TOKEN_COSINE
from builder.models import encoder_of, output_of
from builder.quantisation.calibration import hidden_states, spans_of
from builder.quantisation.eight_bits import Cosines, expected_states, gate_inputs, measure_own, rounder_of
from builder.quantisation.emulated import emulated
from builder.slots import matrices, slots

SPARSE24 = (
    "--sparse24: 2:4 sparsity is not built, as these kernels multiply dense weights alone; what sparse products take "
    "at BERT's sizes, and what pruning does to answers, stands in docs/eight-bits.md (2:4). A checkpoint pruned so is "
    "served as it is, without the option"
)
_LEVELS = 127


def refuse_mode_two(checkpoint: Checkpoint, calibrate: Path | None) -> NoReturn:
    """Raises BuildError, whatever is found: in one line with the cosines that this checkpoint would have."""
    name = "int8 mode 2 (the residual stream in int8, one step for a whole tensor) is not built"
    instead = "use --scheme int8, which is mode 1"
    if spec_of(checkpoint.config).norm != "post":
        raise BuildError(f"{name}: it is for encoders whose LayerNorms stand on the residual stream; {instead}")
    found = mode_two(checkpoint, calibrate)
    verdict = "the gate refuses it" if found.distance > 1 else "the gate would bear it, but no kernel computes it"
    raise BuildError(
        f"{name}: emulated on {checkpoint.source} the worst token's cosine is {found.token:.4f} (allowed "
        f"{TOKEN_COSINE}) on {found.token_input}, the worst pooled one {found.pooled:.4f} (allowed {POOLED_COSINE}) on "
        f"{found.pooled_input}: {verdict}; {instead}"
    )


def mode_two(checkpoint: Checkpoint, calibrate: Path | None) -> Cosines:
    """The worst cosines over the gate's inputs with every matrix in int8 and the residual stream in int8 too, at its
    mildest: sums stay in fp32, and steps reach as far as these very inputs do, so that nothing is cut off."""
    base = encoder_of(checkpoint, checkpoint.load_model())
    chosen, inputs = gate_inputs(checkpoint, calibrate)
    cases = expected_states(checkpoint, base, inputs)
    rounder = rounder_of(checkpoint, base, "int8", [batch for _, batch in chosen.inputs])
    steps = residual_steps(checkpoint, base, [batch for _, batch in inputs])
    with emulated(checkpoint, base, rounder, ()), integer_residual(base, steps):
        return measure_own(checkpoint, base, cases, pooled(checkpoint))


def pooled(checkpoint: Checkpoint) -> str:
    """What the task's head reads of the hidden states, as ``measure`` takes it."""
    embeds = checkpoint.task in ("embedding", "hybrid_embedding")
    return output_of(checkpoint, checkpoint.sentences.pooling if embeds else None)


def residual_steps(
    checkpoint: Checkpoint, base: nn.Module, batches: Sequence[Inputs], *, products: bool = False
) -> dict[str, float]:
    """The step of each LayerNorm, with ``products`` of each product that is added to the stream too: as far as the
    batches reach."""
    watched = {path: path for path in _on_the_stream(checkpoint, products)}
    spans = spans_of(base, watched, batches, lambda inputs: hidden_states(checkpoint, base, inputs), made=True)
    return {path: float(torch.maximum(high, -low).max()) / _LEVELS for path, (low, high) in spans.items()}


def _on_the_stream(checkpoint: Checkpoint, products: bool) -> list[str]:
    family = checkpoint.family
    found: list[str] = []
    for slot in slots(spec_of(checkpoint.config)):
        if slot.name.endswith(".gamma"):
            found += family.modules(slot.module, slot.layer)
        elif products and slot.kind == "matrix" and slot.name.endswith(("attention_output", "output")):
            found += family.modules(slot.name, slot.layer)
    return list(dict.fromkeys(found))


@contextmanager
def integer_residual(base: nn.Module, steps: dict[str, float]) -> Iterator[None]:
    """While it lasts, what these modules make is rounded to such steps, and ends at 127 of them."""

    def rounding(step: float) -> Any:
        return lambda _module, _given, made: (made / step).round().clamp(-_LEVELS, _LEVELS) * step

    handles = [base.get_submodule(path).register_forward_hook(rounding(step)) for path, step in steps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prune24(checkpoint: Checkpoint, base: nn.Module) -> None:
    """Set the two smaller magnitudes of each four neighbours in a row of the encoder's matrices to zero, for good."""
    for slot in matrices(spec_of(checkpoint.config)):
        for path in checkpoint.family.modules(slot.name, slot.layer):
            weight: Any = base.get_submodule(path).weight
            weight.data = pruned24(weight.data)


def pruned24(weight: Tensor) -> Tensor:
    """A matrix [outputs, inputs] without the two smaller magnitudes of each four neighbours in a row."""
    fours = weight.reshape(-1, 4)
    kept = torch.zeros_like(fours).scatter_(1, fours.abs().topk(2, dim=1).indices, 1.0)
    return (fours * kept).reshape(weight.shape)
