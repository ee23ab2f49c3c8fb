"""An encoder's matrices in 8 bits: the archived form that ``efft::prepare_weights`` takes.

Weights get one symmetric scale per output; activations are rounded at run time, with a scale per token. Outliers are
moved from activations into weights as in SmoothQuant (Xiao et al., 2023), by how far each input reaches: measured
(``builder.quantisation.calibration``), or read off the LayerNorm that produces it. The inverse factor is applied when
the operand is rounded, so that the residual stream stays as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from builder import slots
from builder.errors import BuildError
from builder.families.spec import EncoderSpec

Reach = Mapping[str, Tensor]
"""A matrix's slot name -> the largest magnitude of each input [inputs] of its product; matrices that are absent keep
their inputs as they are."""

_MAGIC = b"efft-q01"
_BF16, _S8 = 1, 3
_ENTRY = struct.Struct("<6q")
_ALIGNMENT = 64
_LARGEST = 127
_SMOOTHING = 0.5
"""SmoothQuant's alpha: how much of an input's range the weights take over."""
_DEVIATIONS = 3.0
"""A LayerNorm's output is taken to reach beta plus or minus this many gammas."""


def quantise(
    matrices: Tensor, vectors: Tensor, spec: EncoderSpec, keep: Collection[str] = (), reach: Reach | None = None
) -> Tensor:
    """Round the arenas of ``builder.slots`` to the form of ``kernels/include/efft/quantised.h``.

    ``matrices`` and ``vectors`` are the flat arenas in any float type; those matrices whose slots are named in ``keep``
    stay bf16. ``reach`` says how far the products' inputs go; without it that is estimated from the LayerNorms.
    Returns uint8 [bytes]. Raises BuildError when the arenas do not fit the spec or a weight is not finite.
    """
    return _Rounder(matrices, vectors, spec, reach).arena(keep)


def most_sensitive(
    matrices: Tensor,
    vectors: Tensor,
    spec: EncoderSpec,
    error: Callable[[Tensor], float],
    target: float,
    reach: Reach | None = None,
) -> tuple[str, ...]:
    """Few matrices to ``keep`` so that ``error(quantise(...)) <= target``, found greedily.

    ``error`` takes a quantised arena and says how far the encoder strays with it. Matrices are ranked by the error
    that each causes when it alone is rounded, kept from the worst on until the target holds (by bisection), and then
    rounded after all, from the mildest on, where it holds without them too. Where the target does not even hold in
    bf16, that is all of them.
    """
    rounder = _Rounder(matrices, vectors, spec, reach)

    def reached(keep: Collection[str]) -> float:
        return error(rounder.arena(keep))

    if reached(()) <= target:
        return ()
    every = [slot.name for slot in rounder.slots]
    if reached(every) > target:
        return tuple(every)
    ranked = sorted(every, key=lambda matrix: reached([other for other in every if other != matrix]), reverse=True)
    too_few, count = 0, len(ranked)
    while count - too_few > 1:
        middle = (too_few + count) // 2
        too_few, count = (too_few, middle) if reached(ranked[:middle]) <= target else (middle, count)
    keep = ranked[:count]
    for matrix in reversed(ranked[: count - 1]):
        fewer = [other for other in keep if other != matrix]
        if reached(fewer) <= target:
            keep = fewer
    return tuple(keep)


class _Rounder:
    """An encoder's matrices, each rounded at most once however many arenas are made of them."""

    def __init__(self, matrices: Tensor, vectors: Tensor, spec: EncoderSpec, reach: Reach | None) -> None:
        self.slots = slots.matrices(spec)
        if matrices.numel() != sum(slot.elements for slot in self.slots):
            raise BuildError(f"the matrix arena holds {matrices.numel()} numbers, which is not what its spec asks for")
        if not torch.isfinite(matrices).all():
            raise BuildError("the matrix arena holds numbers that are not finite")
        self.spec = spec
        self.weights = {slot.name: slot.of(matrices) for slot in self.slots}
        self.reach = _estimated_reach(spec, vectors.float()) if reach is None else reach
        self.rounded: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def arena(self, keep: Collection[str]) -> Tensor:
        """The archived form with the matrices of ``keep`` in bf16, uint8 [bytes]."""
        writer = _Writer(self.spec, len(self.slots))
        for matrix, weight in self.weights.items():
            if matrix in keep:
                writer.add_bf16(weight)
                continue
            if matrix not in self.rounded:
                self.rounded[matrix] = _round(weight.float(), self.reach.get(matrix))
            writer.add_s8(*self.rounded[matrix])
        return writer.finish()


def _round(weight: Tensor, magnitude: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [outputs, inputs], scales [outputs] and factors [inputs]; weight = scale * integer * factor."""
    factors = torch.ones(weight.shape[1])
    if magnitude is not None:
        tiny = torch.finfo(torch.float32).tiny ** 0.5
        range_in, range_out = magnitude.clamp(min=tiny), weight.abs().amax(0).clamp(min=tiny)
        factors = range_out ** (1 - _SMOOTHING) / range_in**_SMOOTHING
        factors = factors / factors.log().mean().exp()
    spread = weight / factors
    scales = spread.abs().amax(1) / _LARGEST
    integers = (spread / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    return integers.to(torch.int8), scales, factors


def _estimated_reach(spec: EncoderSpec, vectors: Tensor) -> dict[str, Tensor]:
    """How far the inputs of the products behind a LayerNorm go, judged by that LayerNorm."""
    every = {slot.name: slot for slot in slots.slots(spec)}

    def reach(norm: str) -> Tensor:
        gamma, beta = (every[f"{norm}.{part}"].of(vectors) for part in ("gamma", "beta"))
        return _DEVIATIONS * gamma.abs() + beta.abs()

    return {name: reach(slot.fed_by) for name, slot in every.items() if slot.feed == "norm"}


class _Writer:
    def __init__(self, spec: EncoderSpec, entries: int) -> None:
        numbers = (spec.layers, spec.hidden, spec.width, spec.intermediate, entries)
        self.header = _MAGIC + struct.pack("<5q", *numbers)
        self.used = len(self.header) + entries * _ENTRY.size
        self.entries: list[bytes] = []
        self.pieces: list[tuple[int, Tensor]] = []

    def add_bf16(self, weight: Tensor) -> None:
        self.entries.append(_ENTRY.pack(_BF16, *weight.shape, self._place(weight.to(torch.bfloat16)), 0, 0))

    def add_s8(self, integers: Tensor, scales: Tensor, factors: Tensor) -> None:
        offsets = [self._place(tensor) for tensor in (integers, scales, factors)]
        self.entries.append(_ENTRY.pack(_S8, *integers.shape, *offsets))

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
