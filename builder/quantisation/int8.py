"""8-bit archives: the choice of matrices, and the cosines it must hold.

The yardstick of other types, twice plain PyTorch's error, does not exist for int8. What users of an encoder feel is the
angle by which its vectors turn, so the worst token's and the worst pooled vector's cosine against the checkpoint in
fp32 are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.checkpoint import Checkpoint
from builder.encoder import encode, pack, prepare, tensors_of
from builder.families import spec_of
from builder.gate.probes import Inputs, probes
from builder.gate.verdict import HEAD_ERROR, POOLED_COSINE, TOKEN_COSINE, CosineVerdict
from builder.models import PackedModel, assemble, encoder_of, output_of
from builder.quantisation.calibration import Calibration, calibration, hidden_states, measured_reach
from builder.quantisation.quantise import most_sensitive, quantise
from builder.slots import matrices
from handler.runtime import TracedModel

_WORK = 1e11
"""Operations of the longest probe: every choice of matrices runs it once."""
_MARGIN = 0.9
"""Matrices are kept in bf16 until this share of the allowed distance is reached: another processor rounds otherwise."""


@dataclass(frozen=True)
class Cosines:
    """The worst token's and the worst pooled vector's cosine over several inputs, and on which input each arose.

    Pooled is what the task's head reads: the first token's vector, or the mean over the valid tokens.
    """

    token: float = 2.0
    token_input: str = ""
    pooled: float = 2.0
    pooled_input: str = ""

    def beside(self, name: str, actual: Tensor, expected: Tensor, mask: Tensor, output: str) -> Cosines:
        """The worse of these and those of one more input: hidden states [B, S, H], mask [B, S]."""
        valid = mask.bool()
        token = _worst(actual[valid], expected[valid])
        pooled = _worst(*(_pool(x.double(), mask, output) for x in (actual, expected)))
        found = self
        if token < self.token:
            found = replace(found, token=token, token_input=name)
        if pooled < self.pooled:
            found = replace(found, pooled=pooled, pooled_input=name)
        return found

    @property
    def distance(self) -> float:
        """The larger of the two distances from 1, as a share of what is allowed."""
        return max((1 - self.token) / (1 - TOKEN_COSINE), (1 - self.pooled) / (1 - POOLED_COSINE))


def _worst(actual: Tensor, expected: Tensor) -> float:
    """The smallest cosine between rows; -1 where there is one that is no number."""
    return float(F.cosine_similarity(actual.double(), expected.double(), dim=-1).nan_to_num(nan=-1.0).min())


def _pool(hidden: Tensor, mask: Tensor, output: str) -> Tensor:
    if output == "first":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def gate_inputs(checkpoint: Checkpoint, calibrate: Path | None) -> tuple[Calibration, list[tuple[str, Inputs]]]:
    """The calibration inputs, and those with the gate's probes of random ids."""
    chosen = calibration(checkpoint, calibrate)
    return chosen, [*probes(checkpoint, _WORK), *chosen.inputs]


def expected_states(
    checkpoint: Checkpoint, base: nn.Module, inputs: Iterable[tuple[str, Inputs]]
) -> list[tuple[str, Inputs, Tensor]]:
    """Each input with the hidden states of the checkpoint's own encoder in fp32."""
    return [(name, batch, hidden_states(checkpoint, base, batch)) for name, batch in inputs]


def measure(cases: Iterable[tuple[str, Inputs, Tensor]], hidden: Callable[[Inputs], Tensor], output: str) -> Cosines:
    """The worst cosines of ``hidden``'s answers."""
    found = Cosines()
    for name, batch, expected in cases:
        found = found.beside(name, hidden(batch), expected, batch[2], output)
    return found


def quantised_model(
    checkpoint: Checkpoint, pooling: str | None, calibrate: Path | None
) -> tuple[PackedModel, dict[str, Any]]:
    """The checkpoint in 8 bits, as many matrices in bf16 as the cosines ask for, and what was chosen.

    Tables and the arithmetic between the products are bf16, and so is fill-mask's head; other heads are fp32. Whether
    the cosines hold is for :func:`judge` to say: where not even bf16 does, every matrix is bf16. Raises BuildError for
    odd weights or unreadable texts.
    """
    spec, output = spec_of(checkpoint.config), output_of(checkpoint, pooling)
    model = checkpoint.load_model()
    base = encoder_of(checkpoint, model)
    chosen, inputs = gate_inputs(checkpoint, calibrate)
    exact = pack(tensors_of(base), checkpoint.family, spec, torch.float32)
    served = pack(tensors_of(base), checkpoint.family, spec, torch.bfloat16)
    cases = expected_states(checkpoint, base, inputs)
    reach = measured_reach(checkpoint, base, [batch for _, batch in chosen.inputs])

    def distance(arena: Tensor) -> float:
        weights = prepare(spec, replace(served, matrices=arena))
        return measure(cases, lambda batch: encode(spec, weights, batch, "hidden").float(), output).distance

    keep = most_sensitive(exact.matrices, exact.vectors, spec, distance, _MARGIN, reach)
    arena = quantise(exact.matrices, exact.vectors, spec, keep, reach)
    facts = {
        "calibrated_on": chosen.source,
        "matrices": len(matrices(spec)),
        "kept": [slot.name for slot in matrices(spec) if slot.name in keep],
    }
    return assemble(checkpoint, model, replace(served, matrices=arena), pooling), facts


def judge(checkpoint: Checkpoint, model: TracedModel, pooling: str | None, calibrate: Path | None) -> CosineVerdict:
    """The gate: a loaded 8-bit archive's encoder and head against the checkpoint in fp32."""
    spec, output = spec_of(checkpoint.config), output_of(checkpoint, pooling)
    stock = checkpoint.load_model()
    base = encoder_of(checkpoint, stock)
    _, inputs = gate_inputs(checkpoint, calibrate)
    weights = model.module.encoder

    def hidden(batch: Inputs) -> Tensor:
        return encode(spec, weights, batch, "hidden").float()

    found = measure(expected_states(checkpoint, base, inputs), hidden, output)
    exact = pack(tensors_of(base), checkpoint.family, spec, torch.float32)
    reference = assemble(checkpoint, stock, exact, pooling)
    squares = torch.zeros(2, dtype=torch.float64)
    for _, batch in inputs:
        with torch.inference_mode():
            expected = reference.answer(encode(spec, weights, batch, output).float(), batch[2])
        actual = [torch.from_numpy(answer) for answer in model(*(tensor.numpy() for tensor in batch))]
        for ours, theirs in zip(actual, expected, strict=True):
            squares += torch.stack([(ours - theirs).double().square().sum(), theirs.double().square().sum()])
    head_error = float((squares[0] / squares[1]).sqrt())
    return CosineVerdict(
        token_cosine=found.token,
        token_input=found.token_input,
        pooled_cosine=found.pooled,
        pooled_input=found.pooled_input,
        head_error=head_error,
        probes=len(inputs),
        passed=found.distance <= 1 and head_error <= HEAD_ERROR,
    )
