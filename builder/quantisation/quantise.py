"""An encoder's matrices in 8 bits: the archived form that ``efft::prepare`` takes.

Weights get one symmetric scale per output; activations are rounded at run time, with a scale per token. Outliers are
moved from activations into weights as in SmoothQuant (Xiao et al., 2023), by how far each input reaches: measured
(``builder.quantisation.calibration``), or read off the LayerNorm that produces it. The inverse factor is applied when
the operand is rounded, so that the residual stream stays as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from builder.errors import BuildError

MatrixName = Literal["projection", "qkv", "attention_output", "intermediate", "output"]
Matrix = tuple[int, MatrixName]
"""A layer (0 for the projection) and one of its matrices."""
Reach = Mapping[Matrix, Tensor]
"""The largest magnitude of each input [inputs] of a product; matrices that are absent keep their inputs as they are."""

_MAGIC = b"efft-q01"
_BF16, _S8 = 1, 3
_ENTRY = struct.Struct("<6q")
_ALIGNMENT = 64
_LARGEST = 127
_SMOOTHING = 0.5
"""SmoothQuant's alpha: how much of an input's range the weights take over."""
_DEVIATIONS = 3.0
"""A LayerNorm's output is taken to reach beta plus or minus this many gammas."""


class Shape(Protocol):
    """What must be known of an encoder."""

    @property
    def layers(self) -> int:
        """Encoder layers."""

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""

    @property
    def embedding(self) -> int:
        """Width of the embedding tables."""

    @property
    def intermediate(self) -> int:
        """Width between a feed-forward block's products."""

    @property
    def pre_norm(self) -> bool:
        """Whether LayerNorm stands before each block."""


def matrices_of(shape: Shape) -> list[Matrix]:
    """All matrices of an encoder in the arena's order."""
    names: tuple[MatrixName, ...] = ("qkv", "attention_output", "intermediate", "output")
    front: list[Matrix] = [(0, "projection")] if shape.embedding != shape.hidden else []
    return front + [(layer, name) for layer in range(shape.layers) for name in names]


def quantise(
    matrices: Tensor, vectors: Tensor, shape: Shape, keep: Collection[Matrix] = (), reach: Reach | None = None
) -> Tensor:
    """Round the arenas of ``kernels/include/efft/encoder.h`` to the form of ``kernels/include/efft/quantised.h``.

    ``matrices`` and ``vectors`` are the flat arenas in any float type; those matrices named in ``keep`` stay bf16.
    ``reach`` says how far the products' inputs go; without it that is estimated from the LayerNorms.
    Returns uint8 [bytes]. Raises BuildError when the arenas do not fit the shape or a weight is not finite.
    """
    return _Rounder(matrices, vectors, shape, reach).arena(keep)


def most_sensitive(
    matrices: Tensor,
    vectors: Tensor,
    shape: Shape,
    error: Callable[[Tensor], float],
    target: float,
    reach: Reach | None = None,
) -> tuple[Matrix, ...]:
    """Few matrices to ``keep`` so that ``error(quantise(...)) <= target``, found greedily.

    ``error`` takes a quantised arena and says how far the encoder strays with it. Matrices are ranked by the error
    that each causes when it alone is rounded, kept from the worst on until the target holds (by bisection), and then
    rounded after all, from the mildest on, where it holds without them too. Where the target does not even hold in
    bf16, that is all of them.
    """
    rounder = _Rounder(matrices, vectors, shape, reach)

    def reached(keep: Collection[Matrix]) -> float:
        return error(rounder.arena(keep))

    if reached(()) <= target:
        return ()
    every = matrices_of(shape)
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

    def __init__(self, matrices: Tensor, vectors: Tensor, shape: Shape, reach: Reach | None) -> None:
        self.names = matrices_of(shape)
        sizes = [_size(shape, name) for _, name in self.names]
        if matrices.numel() != sum(outputs * inputs for outputs, inputs in sizes):
            raise BuildError(f"the matrix arena holds {matrices.numel()} numbers, which is not what its shape asks for")
        if not torch.isfinite(matrices).all():
            raise BuildError("the matrix arena holds numbers that are not finite")
        self.shape = shape
        flat = torch.split(matrices, [outputs * inputs for outputs, inputs in sizes])
        self.weights = {m: piece.view(size) for m, piece, size in zip(self.names, flat, sizes, strict=True)}
        self.reach = _Magnitudes(shape, vectors.float()).of if reach is None else reach.get
        self.rounded: dict[Matrix, tuple[Tensor, Tensor, Tensor]] = {}

    def arena(self, keep: Collection[Matrix]) -> Tensor:
        """The archived form with the matrices of ``keep`` in bf16, uint8 [bytes]."""
        writer = _Writer(self.shape, len(self.names))
        for matrix in self.names:
            if matrix in keep:
                writer.add_bf16(self.weights[matrix])
                continue
            if matrix not in self.rounded:
                self.rounded[matrix] = _round(self.weights[matrix].float(), self.reach(matrix))
            writer.add_s8(*self.rounded[matrix])
        return writer.finish()


def _size(shape: Shape, name: MatrixName) -> tuple[int, int]:
    h, i = shape.hidden, shape.intermediate
    return {
        "projection": (h, shape.embedding),
        "qkv": (3 * h, h),
        "attention_output": (h, h),
        "intermediate": (i, h),
        "output": (h, i),
    }[name]


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


@dataclass(frozen=True)
class _Magnitudes:
    """How far each input of a product reaches, judged by the LayerNorm before it."""

    shape: Shape
    vectors: Tensor

    def of(self, matrix: Matrix) -> Tensor | None:
        """Per input, or None where no LayerNorm stands directly before the product."""
        layer, name = matrix
        if name == "projection":
            return self._reach(0, self.shape.embedding)
        if name == "intermediate":
            return self._after_attention(layer)
        return self._before_attention(layer) if name == "qkv" else None

    def _before_attention(self, layer: int) -> Tensor | None:
        h, i = self.shape.hidden, self.shape.intermediate
        if self.shape.pre_norm:
            return self._reach(self._base(layer) + 4 * h, h)
        if layer > 0:
            return self._reach(self._base(layer - 1) + 7 * h + i, h)
        return self._reach(0, h) if self.shape.embedding == h else None

    def _after_attention(self, layer: int) -> Tensor:
        h, i = self.shape.hidden, self.shape.intermediate
        return self._reach(self._base(layer) + (7 * h + i if self.shape.pre_norm else 4 * h), h)

    def _base(self, layer: int) -> int:
        s = self.shape
        front = 2 * s.embedding + (s.hidden if s.embedding != s.hidden else 0)
        return front + layer * (9 * s.hidden + s.intermediate)

    def _reach(self, offset: int, width: int) -> Tensor:
        gamma, beta = self.vectors[offset : offset + width], self.vectors[offset + width : offset + 2 * width]
        return _DEVIATIONS * gamma.abs() + beta.abs()


class _Writer:
    def __init__(self, shape: Shape, entries: int) -> None:
        numbers = (shape.layers, shape.hidden, shape.embedding, shape.intermediate, entries)
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
