"""The operators in plain PyTorch, at any precision: in float64 they are the truth, in a served type the yardstick."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.families import EncoderSpec

STEPS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Shape:
    """An encoder's shape and options; ``positions`` and what goes with them as in ``efft/spec.h``."""

    layers: int = 2
    hidden: int = 64
    heads: int = 2
    intermediate: int = 256
    embedding: int | None = None
    activation: str = "gelu"
    pre_norm: bool = False
    epsilon: float = 1e-12
    positions: str = "slot"
    offset: int = 0
    pad: int | None = None

    @property
    def width(self) -> int:
        """Width of the embedding tables."""
        return self.embedding or self.hidden

    @property
    def spec(self) -> EncoderSpec:
        """What the operators take."""
        options = {name: getattr(self, name) for name in ("activation", "epsilon", "positions", "offset", "pad")}
        sizes = (self.layers, self.hidden, self.heads, self.intermediate, self.width)
        return EncoderSpec(*sizes, norm="pre" if self.pre_norm else "post", **options)

    def matrix_sizes(self) -> list[tuple[int, int]]:
        """The matrices in the arena's order, (outputs, inputs)."""
        h, i = self.hidden, self.intermediate
        front = [(h, self.width)] if self.width != h else []
        return front + [(3 * h, h), (h, h), (i, h), (h, i)] * self.layers

    def vector_sizes(self) -> list[tuple[str, int]]:
        """The vectors in the arena's order, (kind, size)."""
        h, i, e = self.hidden, self.intermediate, self.width
        front = [("gamma", e), ("beta", e)] + ([("bias", h)] if e != h else [])
        layer = [
            ("bias", 3 * h),
            ("bias", h),
            ("gamma", h),
            ("beta", h),
            ("bias", i),
            ("bias", h),
            ("gamma", h),
            ("beta", h),
        ]
        return front + layer * self.layers + ([("gamma", h), ("beta", h)] if self.pre_norm else [])


@dataclass(frozen=True)
class Weights:
    """Tables and arenas; ``matrices`` and the tables in the served type, ``vectors`` always fp32."""

    word: Tensor
    position: Tensor
    segment: Tensor
    matrices: Tensor
    vectors: Tensor

    def to(self, dtype: torch.dtype) -> Weights:
        """All but the vectors in ``dtype``."""
        tables = {name: getattr(self, name).to(dtype) for name in ("word", "position", "segment", "matrices")}
        return replace(self, **tables)


def random_weights(shape: Shape, generator: torch.Generator, words: int = 50, positions: int = 600) -> Weights:
    """fp32 weights of a trained model's magnitudes."""

    def normal(*size: int, scale: float) -> Tensor:
        return torch.randn(size, generator=generator) * scale

    tables = [normal(rows, shape.width, scale=0.5) for rows in (words, positions, 3)]
    matrices = [normal(n, k, scale=k**-0.5).flatten() for n, k in shape.matrix_sizes()]
    vectors = [normal(n, scale=0.1) + (kind == "gamma") for kind, n in shape.vector_sizes()]
    return Weights(*tables, torch.cat(matrices), torch.cat(vectors))


def position_rows(ids: Tensor, mask: Tensor, shape: Shape) -> Tensor:
    """The row of the position table for each token, int64 [B, S]."""
    if shape.positions == "ids":
        counted = (ids != shape.pad).long()
        return counted.cumsum(1) * counted + shape.pad
    columns = torch.arange(ids.shape[1]).expand_as(ids)
    rank = ((mask != 0).cumsum(1) - 1).clamp(min=0)
    return shape.offset + (rank if shape.positions == "mask" else columns)


def embed_norm(
    ids: Tensor, segments: Tensor, mask: Tensor, weights: Weights, gamma: Tensor, beta: Tensor, shape: Shape
) -> Tensor:
    """[B, S, E], in the tables' type."""
    positions = position_rows(ids, mask, shape)
    total = weights.word[ids] + weights.position[positions] + weights.segment[segments]
    dtype = total.dtype
    return F.layer_norm(total, (shape.width,), gamma.to(dtype), beta.to(dtype), shape.epsilon)


def attention(qkv: Tensor, bias: Tensor, mask: Tensor, heads: int) -> Tensor:
    """qkv [B, S, 3H], mask [B, S] -> [B, S, H], in qkv's type."""
    batch, length, width = qkv.shape
    q, k, v = (qkv + bias.to(qkv.dtype)).view(batch, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5)
    scores = scores.masked_fill((mask == 0)[:, None, None, :], torch.finfo(qkv.dtype).min)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width // 3)


def encoder(
    ids: Tensor,
    segments: Tensor,
    mask: Tensor,
    weights: Weights,
    shape: Shape,
    output: str = "hidden",
    operand: Callable[[int, Tensor], Tensor] = lambda index, x: x,
) -> Tensor:
    """What ``torch.ops.efft.encode`` should return, computed padded in the tables' type.

    ``operand(i, x)`` stands for what becomes of x, the input of the arena's i-th matrix, before the product.
    """
    dtype = weights.word.dtype
    matrices = iter(torch.split(weights.matrices.to(dtype), [n * k for n, k in shape.matrix_sizes()]))
    sizes = iter(shape.matrix_sizes())
    vectors = iter(torch.split(weights.vectors.to(dtype), [n for _, n in shape.vector_sizes()]))

    indices = itertools.count()

    def linear(x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(operand(next(indices), x), next(matrices).view(next(sizes)), bias)

    def norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.layer_norm(x, (shape.hidden,), gamma, beta, shape.epsilon)

    x = embed_norm(ids, segments, mask, weights, next(vectors), next(vectors), shape)
    if shape.width != shape.hidden:
        x = linear(x, next(vectors))
    for _ in range(shape.layers):
        qkv_bias, attention_bias, g1, b1, up_bias, down_bias, g2, b2 = (next(vectors) for _ in range(8))
        qkv = linear(norm(x, g1, b1) if shape.pre_norm else x, None)
        x = x + linear(attention(qkv, qkv_bias, mask, shape.heads), attention_bias)
        x = x if shape.pre_norm else norm(x, g1, b1)
        up = STEPS[shape.activation](linear(norm(x, g2, b2) if shape.pre_norm else x, up_bias))
        x = x + linear(up, down_bias)
        x = x if shape.pre_norm else norm(x, g2, b2)
    if shape.pre_norm:
        x = norm(x, next(vectors), next(vectors))
    return reduce(x, mask, output)


def reduce(x: Tensor, mask: Tensor, output: str) -> Tensor:
    """[B, S, H] to what ``output`` names; rows without a valid token are zeros."""
    valid = (mask != 0)[..., None]
    x = x.masked_fill(~valid, 0)
    if output == "first":
        first = valid.int().argmax(1, keepdim=True).expand(-1, -1, x.shape[-1])
        return x.gather(1, first).squeeze(1)
    if output == "mean":
        return x.sum(1) / valid.sum(1).clamp(min=1)
    return x
