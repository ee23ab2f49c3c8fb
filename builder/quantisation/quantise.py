"""An encoder's matrices in 8 bits: the archived form that ``efft::prepare_weights`` takes.

Weights get one symmetric scale per output; activations are rounded at run time, with a scale per token, or in steps
that are the same for every token where some are given. Integers cannot hold outliers: these are moved from activations
into weights as in SmoothQuant (Xiao et al., 2023): fitted to inputs (``builder.quantisation.fitting``), or where none
are at hand by how far they reach, read off the LayerNorm that produces them. The inverse factor is applied when
the operand is rounded, so that the residual stream stays as it is. E4M3 (Micikevicius et al., "FP8 formats for deep
learning", 2022) keeps outliers beside small numbers and needs no such factors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from builder import slots
from builder.errors import BuildError
from builder.families.spec import EncoderSpec
from builder.quantisation.fitting import compensated, learned_factors

Reach = Mapping[str, Tensor]
"""A matrix's slot name -> the largest magnitude of each input [inputs] of its product; matrices that are absent keep
their inputs as they are."""


@dataclass(frozen=True)
class Step:
    """Steps of operands, the same for every token: value = size * (number - zero)."""

    size: float
    zero: int = 0
    """Of int8's operands, which are unsigned; 128 where the range is as long on either side."""


Steps = Mapping[str, Step]
"""A matrix's slot name -> the steps of its operands; those that are absent round each token over its own range."""

Samples = Mapping[str, Tensor]
"""A matrix's slot name -> inputs of its product, [tokens, inputs] of any float type."""


@dataclass(frozen=True)
class Number:
    """A type of 8 bits, as ``kernels/include/efft/quantised.h`` has it."""

    code: int
    largest: float
    dtype: torch.dtype
    smooths: bool
    """Whether outliers have to move into the weights."""

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest numbers, in fp32; beyond the largest, that."""
        x = x.clamp(-self.largest, self.largest)
        return x.round() if self.dtype is torch.int8 else x.to(self.dtype).float()


NUMBERS = {"int8": Number(3, 127, torch.int8, True), "fp8": Number(4, 448, torch.float8_e4m3fn, False)}
"""By the schemes' names."""


@dataclass(frozen=True)
class Rounded:
    """A matrix in 8 bits: weight = scale * number * factor."""

    numbers: Tensor
    """[outputs, inputs], int8 or float8_e4m3fn."""
    scales: Tensor
    """fp32 [outputs]."""
    factors: Tensor
    """fp32 [inputs]."""
    step: Step | None = None
    """Of operands; None: each token has its own."""

    @property
    def weight(self) -> Tensor:
        """What the numbers stand for, fp32 [outputs, inputs]."""
        return self.numbers.float() * self.scales[:, None] * self.factors


Given = Mapping[str, Rounded]
"""A matrix's slot name -> its 8 bits as the checkpoint has them already."""

_MAGIC, _MAGIC_WITHOUT_STEPS = b"efft-q02", b"efft-q01"
_BF16 = 1
_ENTRY, _ENTRY_WITHOUT_STEP = struct.Struct("<7q"), struct.Struct("<6q")
_ALIGNMENT = 64
_SMOOTHING = 0.5
"""SmoothQuant's alpha: how much of an input's range the weights take over."""
_HEADROOM = 2.0
"""Costs one of e4m3's 15 binades of small numbers; what reaches further yet stays at its largest."""
_FIRM = 6
"""Of so many matrices one is not rounded after all because the target holds without it."""
_DEVIATIONS = 3.0
"""A LayerNorm's output is taken to reach beta plus or minus this many gammas."""


def quantise(
    matrices: Tensor,
    vectors: Tensor,
    spec: EncoderSpec,
    keep: Collection[str] = (),
    reach: Reach | None = None,
    *,
    number: str = "int8",
    steps: Steps | None = None,
    given: Given | None = None,
) -> Tensor:
    """Round the arenas of ``builder.slots`` to the form of ``kernels/include/efft/quantised.h``.

    ``matrices`` and ``vectors`` are the flat arenas in any float type; those matrices whose slots are named in ``keep``
    stay bf16. ``reach`` says how far the products' inputs go; without it that is estimated from the LayerNorms.
    ``given`` matrices are written as they are. Returns uint8 [bytes]. Raises BuildError when the arenas do not fit the
    spec or a weight is not finite.
    """
    return Rounder(matrices, vectors, spec, reach, number=number, steps=steps, given=given).arena(keep)


def steps_of(ranges: Mapping[str, tuple[float, float]], number: str) -> dict[str, Step]:
    """Steps for operands between a lowest and a highest value, by matrix; none for operands that were all zero.

    e4m3 is given ``_HEADROOM`` times as much room; integers are not, as each of theirs counts.
    """
    steps = {}
    for name, (low, high) in ranges.items():
        low, high = min(low, 0.0), max(high, 0.0)
        if high == low:
            continue
        if number == "int8":
            size = (high - low) / 255
            steps[name] = Step(size, round(-low / size))
        else:
            steps[name] = Step(_HEADROOM * max(high, -low) / NUMBERS[number].largest)
    return steps


def most_sensitive(
    matrices: Tensor,
    vectors: Tensor,
    spec: EncoderSpec,
    error: Callable[[Tensor], float],
    target: float,
    reach: Reach | None = None,
) -> tuple[str, ...]:
    """As :func:`fewest_kept`, of int8, by an error of arenas."""
    rounder = Rounder(matrices, vectors, spec, reach)
    return fewest_kept([slot.name for slot in rounder.slots], lambda keep: error(rounder.arena(keep)), target)


def fewest_kept(
    every: list[str],
    reached: Callable[[Collection[str]], float],
    target: float,
    always: Collection[str] = (),
    rank: Callable[[list[str]], list[str]] | None = None,
) -> tuple[str, ...]:
    """Few of ``every`` matrix to keep in 16 bits so that ``reached(kept) <= target``, found greedily.

    ``reached`` says how far the encoder strays with those kept. Matrices are ranked, by ``rank`` or else by the error
    that each causes when it alone is rounded, kept from the worst on until the target holds (by bisection), and then
    rounded after all, from the mildest on, where it holds without them too; but not the first of a ``rank``, one in
    ``_FIRM`` of all, since it knows what ``reached`` does not. Where the target does not even hold in 16 bits, that is
    all of them. Those of ``always`` are kept whatever is reached, and come first.
    """
    always = [matrix for matrix in every if matrix in always]
    if reached(always) <= target:
        return tuple(always)
    if reached(every) > target:
        return tuple(every)
    free = [matrix for matrix in every if matrix not in always]
    if rank is None:
        ranked = sorted(free, key=lambda matrix: reached([other for other in every if other != matrix]), reverse=True)
    else:
        ranked = rank(free)
    too_few, count = 0, len(ranked)
    while count - too_few > 1:
        middle = (too_few + count) // 2
        too_few, count = (too_few, middle) if reached([*always, *ranked[:middle]]) <= target else (middle, count)
    keep = ranked[:count]
    firm = len(every) // _FIRM if rank is not None else 0
    for matrix in reversed(ranked[firm : count - 1]):
        fewer = [other for other in keep if other != matrix]
        if reached([*always, *fewer]) <= target:
            keep = fewer
    return (*always, *keep)


class Rounder:
    """An encoder's matrices, each rounded at most once however many arenas are made of them."""

    def __init__(
        self,
        matrices: Tensor,
        vectors: Tensor,
        spec: EncoderSpec,
        reach: Reach | None = None,
        *,
        number: str = "int8",
        steps: Steps | None = None,
        given: Given | None = None,
        samples: Samples | None = None,
    ) -> None:
        self.slots = slots.matrices(spec)
        if matrices.numel() != sum(slot.elements for slot in self.slots):
            raise BuildError(f"the matrix arena holds {matrices.numel()} numbers, which is not what its spec asks for")
        if not torch.isfinite(matrices).all():
            raise BuildError("the matrix arena holds numbers that are not finite")
        self.spec = spec
        self.weights = {slot.name: slot.of(matrices) for slot in self.slots}
        self.number = NUMBERS[number]
        self.reach = _estimated_reach(spec, vectors.float()) if reach is None else reach
        self.steps = steps or {}
        self.given = given or {}
        self.samples = samples or {}
        self._fixed = set(self.steps)
        self._rounded: dict[tuple[str, bool], Rounded] = {}

    def fix(self, matrices: Collection[str]) -> None:
        """Let the operands of these matrices, and of no others, have the steps that are known of them."""
        self._fixed = set(matrices)

    def rounded(self, matrix: str) -> Rounded:
        """A matrix in 8 bits, by its slot's name."""
        if matrix in self.given:
            return self.given[matrix]
        step = self.steps.get(matrix) if matrix in self._fixed else None
        key = matrix, step is not None
        if key not in self._rounded:
            self._rounded[key] = self._round(matrix, step)
        return self._rounded[key]

    def _round(self, matrix: str, step: Step | None) -> Rounded:
        """Operands in steps that all tokens share have no factors: the kernels that write them know of none."""
        weight, inputs = self.weights[matrix].float(), self.samples.get(matrix)
        factors = torch.ones(weight.shape[1])
        if self.number.smooths and step is None:
            if matrix in self.reach:
                factors = _smoothing(weight, self.reach[matrix])
            if inputs is not None:
                factors = learned_factors(weight, inputs, factors)
        spread = weight / factors
        scales = spread.abs().amax(1) / self.number.largest
        steps_of_weights = scales.clamp(min=torch.finfo(torch.float32).tiny)
        if inputs is not None and self.number.dtype is torch.int8:
            numbers = compensated(spread, steps_of_weights, inputs.float() * factors, self.number.largest)
        else:
            numbers = self.number.rounded(spread / steps_of_weights[:, None])
        return Rounded(numbers.to(self.number.dtype), scales, factors, step)

    def arena(self, keep: Collection[str]) -> Tensor:
        """The archived form with the matrices of ``keep`` in bf16, uint8 [bytes]."""
        eight = {matrix: self.rounded(matrix) for matrix in self.weights if matrix not in keep}
        first = all(one.numbers.dtype is torch.int8 and one.step is None for one in eight.values())
        writer = _Writer(self.spec, len(self.slots), steps=not first)
        for matrix, weight in self.weights.items():
            if matrix in eight:
                writer.add(eight[matrix])
            else:
                writer.add_bf16(weight)
        return writer.finish()


def _smoothing(weight: Tensor, magnitude: Tensor) -> Tensor:
    """SmoothQuant's factors [inputs]; ``magnitude`` [inputs]: how far each input reaches."""
    tiny = torch.finfo(torch.float32).tiny ** 0.5
    range_in, range_out = magnitude.clamp(min=tiny), weight.abs().amax(0).clamp(min=tiny)
    factors = range_out ** (1 - _SMOOTHING) / range_in**_SMOOTHING
    return factors / factors.log().mean().exp()


def _estimated_reach(spec: EncoderSpec, vectors: Tensor) -> dict[str, Tensor]:
    """How far the inputs of the products behind a LayerNorm go, judged by that LayerNorm."""
    every = {slot.name: slot for slot in slots.slots(spec)}

    def reach(norm: str) -> Tensor:
        gamma, beta = (every[f"{norm}.{part}"].of(vectors) for part in ("gamma", "beta"))
        return _DEVIATIONS * gamma.abs() + beta.abs()

    return {name: reach(slot.fed_by) for name, slot in every.items() if slot.feed == "norm"}


class _Writer:
    def __init__(self, spec: EncoderSpec, entries: int, *, steps: bool) -> None:
        numbers = (spec.layers, spec.hidden, spec.width, spec.intermediate, entries)
        self.steps = steps
        self.header = (_MAGIC if steps else _MAGIC_WITHOUT_STEPS) + struct.pack("<5q", *numbers)
        self.used = len(self.header) + entries * (_ENTRY if steps else _ENTRY_WITHOUT_STEP).size
        self.entries: list[bytes] = []
        self.pieces: list[tuple[int, Tensor]] = []

    def add_bf16(self, weight: Tensor) -> None:
        self._entry(_BF16, weight, self._place(weight.to(torch.bfloat16)), 0, 0)

    def add(self, matrix: Rounded) -> None:
        numbers = matrix.numbers
        offsets = [self._place(tensor) for tensor in (numbers.view(torch.uint8), matrix.scales, matrix.factors)]
        code = next(number.code for number in NUMBERS.values() if number.dtype is numbers.dtype)
        self._entry(code, numbers, *offsets, step=matrix.step)

    def _entry(self, code: int, matrix: Tensor, *offsets: int, step: Step | None = None) -> None:
        fields = [code, *matrix.shape, *offsets]
        bits = struct.unpack("<q", struct.pack("<fI", step.size, step.zero))[0] if step else 0
        self.entries.append(_ENTRY.pack(*fields, bits) if self.steps else _ENTRY_WITHOUT_STEP.pack(*fields))

    def _place(self, tensor: Tensor) -> int:
        self.used = -(-self.used // _ALIGNMENT) * _ALIGNMENT
        offset = self.used
        data = tensor.contiguous().flatten().view(torch.uint8)
        self.pieces.append((offset, data))
        self.used += data.numel()
        return offset

    def finish(self) -> Tensor:
        out = torch.zeros(self.used, dtype=torch.uint8)
        for offset, data in self._all():
            out[offset : offset + data.numel()] = data
        return out

    def _all(self) -> Iterator[tuple[int, Tensor]]:
        table = self.header + b"".join(self.entries)
        yield 0, torch.frombuffer(bytearray(table), dtype=torch.uint8)
        yield from self.pieces
