"""8-bit archives: the choice of matrices, and the cosines it must hold.

The yardstick of other types, twice plain PyTorch's error, does not exist for 8 bits. What users of an encoder feel is
the angle by which its vectors turn, so the worst token's and the worst pooled vector's cosine against the checkpoint in
fp32 are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.checkpoint import Checkpoint
from builder.encoder import PackedWeights, encode, pack, prepare, tensors_of
from builder.errors import BuildError
from builder.families import EncoderSpec, spec_of
from builder.gate.compare import on_tensors
from builder.gate.probes import Inputs, probes
from builder.gate.verdict import HEAD_ERROR, POOLED_COSINE, TOKEN_COSINE, CosineVerdict
from builder.models import DTYPES, PackedModel, assemble, encoder_of, output_of
from builder.quantisation.calibration import (
    Calibration,
    calibration,
    hidden_states,
    measured_spans,
    more_sequences,
    plain_sentences,
    samples,
)
from builder.quantisation.emulated import emulated
from builder.quantisation.keep import kept_by_hand
from builder.quantisation.quantise import Rounded, Rounder, fewest_kept, steps_of
from builder.quantisation.ranking import by_answers, pooled
from builder.quantisation.schemes import SHARES
from builder.quantisation.stored import stacked
from builder.slots import matrices
from handler.runtime import TracedModel

_WORK = 1e11
"""Operations of the longest probe: every choice of matrices runs it once."""
_GPU_TOKENS = 1024


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

    def worse(self, other: Cosines) -> Cosines:
        """The worse of either."""
        found = self if self.token <= other.token else replace(self, token=other.token, token_input=other.token_input)
        if other.pooled < found.pooled:
            found = replace(found, pooled=other.pooled, pooled_input=other.pooled_input)
        return found

    @property
    def distance(self) -> float:
        """The larger of the two distances from 1, as a share of what is allowed."""
        return max((1 - self.token) / (1 - TOKEN_COSINE), (1 - self.pooled) / (1 - POOLED_COSINE))


def _worst(actual: Tensor, expected: Tensor) -> float:
    """The smallest cosine between rows; -1 where there is one that is no number."""
    return float(F.cosine_similarity(actual.double(), expected.double(), dim=-1).nan_to_num(nan=-1.0).min())


def _pool(hidden: Tensor, mask: Tensor, output: str) -> Tensor:
    return pooled(hidden, mask, "first" if output == "first" else "mean")


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


def measure_own(
    checkpoint: Checkpoint, base: nn.Module, cases: Iterable[tuple[str, Inputs, Tensor]], output: str
) -> Cosines:
    """The worst cosines of the checkpoint's own encoder as it computes now, rounded for a while or not."""
    return measure(cases, lambda batch: hidden_states(checkpoint, base, batch), output)


@dataclass(frozen=True)
class _Trial:
    """What a choice of matrices in 16 bits (``kept``) uses up of the allowed distance, 1 being all of it, on ``cases``.

    ``base`` is the checkpoint's encoder as transformers has it, ``served`` its weights in the type between products.
    """

    checkpoint: Checkpoint
    base: nn.Module
    served: PackedWeights
    rounder: Rounder
    cases: list[tuple[str, Inputs, Tensor]]
    output: str

    def of_engine(self, kept: Collection[str]) -> float:
        """By this machine's."""
        spec = spec_of(self.checkpoint.config)
        weights = prepare(spec, replace(self.served, matrices=self.rounder.arena(kept)))
        return measure(self.cases, lambda batch: encode(spec, weights, batch, "hidden").float(), self.output).distance

    def of_emulation(self, kept: Collection[str], results: torch.dtype = torch.float32) -> float:
        """In plain PyTorch; see ``emulated``."""
        with emulated(self.checkpoint, self.base, self.rounder, kept, results):
            return measure_own(self.checkpoint, self.base, self.cases, self.output).distance

    def of_both(self, kept: Collection[str], enough: float) -> float:
        """The engine's, or the emulation's where that is worse; not emulated where the engine's exceeds ``enough``."""
        found = self.of_engine(kept)
        return found if found > enough else max(found, self.of_emulation(kept, self.served.word.dtype))

    def by(self, scheme: str, gpu: bool, enough: float) -> Callable[[Collection[str]], float]:
        """Which of them decides for a scheme; ``gpu``: whether a GPU is to serve it, too."""
        if scheme != "int8":
            return self.of_emulation
        return partial(self.of_both, enough=enough) if gpu else self.of_engine


def quantised_model(
    checkpoint: Checkpoint,
    pooling: str | None,
    calibrate: Path | None,
    scheme: str = "int8",
    compute: str = "bf16",
    keep: Collection[str] = (),
    share: float = SHARES[0],
    gpu: bool = False,
) -> tuple[PackedModel, dict[str, Any]]:
    """The checkpoint in 8 bits, as many matrices in bf16 as the cosines ask for, and what was chosen.

    Matrices are kept in bf16 until no more than ``share`` of the allowed distance is used up: by this machine's engine,
    and with ``gpu`` by an emulation too, since a GPU does not fall to the same side wherever a value lies between two
    integers. Of int8 those are kept first that move the answers most.

    Matrices named in ``keep`` (``builder.quantisation.keep``) stay bf16 whatever the cosines say; where the checkpoint
    brings its own scales, these are used, and what it has left alone stays bf16 too. Tables and the arithmetic between
    the products are of the type ``compute``, and so is fill-mask's head; other heads are fp32. Whether the cosines hold
    is for :func:`judge` to say: where not even 16 bits do, every matrix has 16. Raises BuildError for odd weights,
    unreadable texts, or names that no matrix has.
    """
    spec, output = spec_of(checkpoint.config), output_of(checkpoint, pooling)
    model = checkpoint.load_model()
    base = encoder_of(checkpoint, model)
    chosen, inputs = gate_inputs(checkpoint, calibrate)
    served = pack(tensors_of(base), checkpoint.family, spec, DTYPES[compute])
    always = kept_by_hand(keep, spec)
    cases = expected_states(checkpoint, base, inputs)
    rounder = rounder_of(checkpoint, base, scheme, [batch for _, batch in chosen.inputs])
    reached = _Trial(checkpoint, base, served, rounder, cases, output).by(scheme, gpu, share)
    every = [slot.name for slot in rounder.slots]
    if rounder.given:  # what the checkpoint's makers left alone stays so
        untouched = {name for name in every if name not in rounder.given}
    else:
        untouched = set()
        if scheme == "int8" and calibrate is not None:
            rounder.fix(few_own_steps(rounder, behind(spec, "attention", "activation"), reached, always, share))
    texts = [plain_sentences(checkpoint)] if calibrate is None else [batch for _, batch in chosen.inputs]
    ranked = by_answers(checkpoint, model, served, pooling, rounder, texts) if scheme == "int8" else None
    kept = fewest_kept(every, reached, share, {*always, *untouched}, ranked)
    facts = _facts(rounder, kept, always, chosen.source)
    return assemble(checkpoint, model, replace(served, matrices=rounder.arena(kept)), pooling), facts


def _facts(rounder: Rounder, kept: Collection[str], by_hand: Collection[str], source: str) -> dict[str, Any]:
    """What archive.json says of the choice, matrices in the encoder's order."""
    every = [slot.name for slot in rounder.slots]
    return {
        "calibrated_on": source,
        "matrices": len(every),
        "kept": [name for name in every if name in kept],
        "kept_by_hand": [name for name in every if name in by_hand],
        "fixed_steps": [name for name in every if name not in kept and rounder.rounded(name).step is not None],
        "scales": "the checkpoint's" if rounder.given else "measured",
    }


def few_own_steps(
    rounder: Rounder,
    candidates: list[str],
    reached: Callable[[Collection[str]], float],
    always: Collection[str],
    share: float = SHARES[0],
) -> list[str]:
    """Those of ``candidates`` whose operands may have steps that all tokens share, which saves a GPU a pass over them:
    as many as the cosines bear without any further matrix in 16 bits."""

    def with_own(own: Collection[str]) -> float:
        rounder.fix([name for name in candidates if name not in own])
        return reached(always)

    own = fewest_kept(candidates, with_own, share)
    return [name for name in candidates if name not in own]


def rounder_of(checkpoint: Checkpoint, base: nn.Module, scheme: str, batches: Sequence[Inputs]) -> Rounder:
    """The matrices of ``base``, the checkpoint's encoder, on their way to 8 bits: with what ``batches`` show of how far
    activations reach; int8's factors and integers are fitted to them and to ``more_sequences``.

    Operands of fp8 behind attention and activations are rounded in steps that all tokens share: rows behind a LayerNorm
    get a scale each at no cost, others by a pass of their own. Those of int8 may be fixed so, too (``Rounder.fix``).
    """
    spec = spec_of(checkpoint.config)
    exact = pack(tensors_of(base), checkpoint.family, spec, torch.float32)
    given = of_checkpoint(checkpoint, base, scheme)
    for slot in matrices(spec):
        _check_given(checkpoint, given.get(slot.name), slot.of(exact.matrices))
    spans = measured_spans(checkpoint, base, batches)
    made = set(behind(spec, "attention", "activation"))
    ranges = {name: (float(low.min()), float(high.max())) for name, (low, high) in spans.items() if name in made}
    steps = steps_of(ranges, scheme)
    smoothed = {n: torch.maximum(high.abs(), low.abs()) for n, (low, high) in spans.items() if n not in made}
    arenas = (exact.matrices, exact.vectors, spec)
    if scheme != "int8":
        return Rounder(*arenas, smoothed, number=scheme, steps=steps, given=given)
    fitted = {} if given else samples(checkpoint, base, [*batches, *more_sequences(checkpoint)])
    rounder = Rounder(*arenas, smoothed, number=scheme, steps=steps, given=given, samples=fitted)
    rounder.fix(())
    return rounder


def of_checkpoint(checkpoint: Checkpoint, base: nn.Module, scheme: str) -> dict[str, Rounded]:
    """The matrices that the checkpoint has in 8 bits already, by slot.

    Raises BuildError where they are of another type than the scheme's.
    """
    if not checkpoint.stored:
        return {}
    prefix = "" if checkpoint.task == "embedding" else f"{checkpoint.family.prefix}."
    state, given = tensors_of(base), {}
    for slot in matrices(spec_of(checkpoint.config)):
        names = [f"{path}.weight" for path in checkpoint.family.modules(slot.name, slot.layer)]
        found = [checkpoint.stored.get(prefix + name) for name in names]
        parts = [(one, state[name].float()) for one, name in zip(found, names, strict=True) if one is not None]
        if wrong := next((one for one, _ in parts if one.scheme not in (None, scheme)), None):
            raise BuildError(f"{checkpoint.source}: quantised as {wrong.scheme}; build it with --scheme {wrong.scheme}")
        if len(parts) == len(names):
            given[slot.name] = stacked([one.rounded(weight, scheme) for one, weight in parts])
    return given


def _check_given(checkpoint: Checkpoint, given: Rounded | None, packed: Tensor) -> None:
    """A family whose weights are folded or put in another order when they are packed has other scales, too."""
    if given is None:
        return
    same = given.weight.shape == packed.shape
    if not same or not (given.weight - packed).norm() <= 0.1 * packed.norm():
        kind = checkpoint.config.model_type
        raise BuildError(f"{checkpoint.source}: scales of a quantised {kind} are not read; give it in floating point")


def behind(spec: EncoderSpec, *feeds: str) -> list[str]:
    """The matrices whose input is made by one of ``feeds``."""
    return [slot.name for slot in matrices(spec) if slot.feed in feeds]


def judge(
    checkpoint: Checkpoint,
    model: TracedModel,
    pooling: str | None,
    calibrate: Path | None,
    scheme: str = "int8",
    kept: Collection[str] = (),
) -> CosineVerdict:
    """The gate: a loaded 8-bit archive's encoder and head against the checkpoint in fp32.

    On a CPU, which multiplies no e4m3, the rounding of activations is emulated besides, for the matrices that were not
    ``kept``; the worse of the two counts. On a GPU the batches are repeated until the matrix units work in 8 bits.
    """
    spec, output = spec_of(checkpoint.config), output_of(checkpoint, pooling)
    stock = checkpoint.load_model()
    base = encoder_of(checkpoint, stock)
    chosen, inputs = gate_inputs(checkpoint, calibrate)
    weights = model.module.encoder
    device = weights.word.device
    cases = expected_states(checkpoint, base, inputs)

    def hidden(batch: Inputs, wanted: str = "hidden") -> Tensor:
        return repeated(batch, device, lambda many: encode(spec, weights, many, wanted)).float().cpu()

    found = measure(cases, hidden, output)
    if scheme != "int8" and device.type == "cpu":
        rounder = rounder_of(checkpoint, base, scheme, [batch for _, batch in chosen.inputs])
        with emulated(checkpoint, base, rounder, kept):
            found = found.worse(measure_own(checkpoint, base, cases, output))
    exact = pack(tensors_of(base), checkpoint.family, spec, torch.float32)
    reference = assemble(checkpoint, stock, exact, pooling)
    squares = torch.zeros(2, dtype=torch.float64)
    for _, batch in inputs:
        with torch.inference_mode():
            expected = reference.answer(hidden(batch, output), batch[2])
        ids, segments, mask = (tensor.repeat(_copies(batch, device), 1) for tensor in batch)
        actual = [answer[: len(batch[0])] for answer in on_tensors(model, checkpoint)(ids, segments, mask)]
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
        device=str(device),
    )


def repeated(batch: Inputs, device: torch.device, run: Callable[[Inputs], Tensor]) -> Tensor:
    """What ``run`` makes on ``device`` of the batch, as a part of one that is large enough for 8 bits there."""
    ids, segments, mask = (tensor.repeat(_copies(batch, device), 1).to(device) for tensor in batch)
    return run((ids, segments, mask))[: len(batch[0])]


def _copies(batch: Inputs, device: torch.device) -> int:
    """On a GPU fewer tokens than these are multiplied in 16 bits (kernels/cuda/engine/path.cu)."""
    return 1 if device.type == "cpu" else 1 + _GPU_TOKENS // max(int(batch[2].sum()), 1)
