"""Encoders beyond BERT's kin in plain PyTorch, at any precision: in float64 the truth, in a served type the yardstick.

Weights are found by their slots' names; that slots lie where they should is for ``test_core.py`` to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.families import EncoderSpec
from builder.slots import Slot, slots
from tests.kernels.reference import STEPS, Shape, Weights, position_rows, reduce

SMALL = EncoderSpec(layers=2, hidden=64, heads=2, intermediate=256)

_NO_TABLES = {"positions": "none", "types": False}
FAMILIES = {
    "modernbert": {
        **_NO_TABLES, "norm": "pre", "first_norm": False, "gated": True, "rotary": "halves", "window": 5, "local": "01",
    },
    "mpnet": {"positions": "ids", "pad": 1, "types": False, "relative": "buckets", "buckets": 32, "distance": 128},
    "deberta": {
        **_NO_TABLES, "relative": "disentangled", "buckets": 16, "distance": 32, "c2p": True, "p2c": True,
    },
    "albert": {"embedding": 16, "activation": "gelu_tanh", "layer_of": (0, 0)},
    "eurobert": {
        **_NO_TABLES, "norm": "pre", "normalise": "rms", "embedding_norm": False, "activation": "silu", "gated": True,
        "rotary": "halves", "kv_heads": 1,
    },
    "t5": {
        **_NO_TABLES, "head": 20, "norm": "pre", "normalise": "rms", "embedding_norm": False, "scale": 0.7,
        "relative": "buckets", "buckets": 8, "distance": 20,
    },
    "esm": {
        **_NO_TABLES, "embedding_norm": False, "norm": "pre", "rotary": "halves", "dropout_token": 4,
    },
    "roformer": {"positions": "none", "rotary": "interleaved", "rotary_size": 8},
    "alibi": {"positions": "none", "relative": "alibi", "gated": True},
}  # fmt: skip
"""Options of a spec by the family that has them all, ``SMALL`` being the sizes."""

ATTRIBUTES = {
    "a head of its own size": {"head": 24},
    "shared keys": {"heads": 4, "kv_heads": 2},
    "RMSNorm": {"normalise": "rms"},
    "no first norm": {"norm": "pre", "first_norm": False},
    "no embedding norm": {"embedding_norm": False},
    "no embedding norm, projected": {"embedding_norm": False, "embedding": 38},
    "no positions": {"positions": "none"},
    "no types": {"types": False},
    "gated": {"gated": True, "intermediate": 131},
    "gated, wide": {"gated": True, "intermediate": 200, "activation": "silu", "hidden": 96},
    "halves": {"rotary": "halves"},
    "some of the halves": {"rotary": "halves", "rotary_size": 6},
    "neighbours": {"rotary": "interleaved"},
    "windows": {"window": 7, "local": "10"},
    "a wide window": {"window": 40, "local": "11", "head": 64},
    "a scale": {"scale": 0.3},
    "buckets": {"relative": "buckets", "buckets": 32, "distance": 64},
    "buckets in a window": {"relative": "buckets", "buckets": 32, "distance": 64, "window": 9, "local": "01"},
    "slopes": {"relative": "alibi"},
    "c2p": {"relative": "disentangled", "buckets": 8, "distance": 100, "c2p": True},
    "p2c": {"relative": "disentangled", "buckets": 64, "distance": 128, "p2c": True},
    "distances": {"relative": "disentangled", "distance": 12, "c2p": True, "p2c": True},
    "many buckets": {
        "relative": "disentangled", "buckets": 256, "distance": 512, "c2p": True, "p2c": True, "head": 64,
    },
    "shared layers": {"layers": 4, "layer_of": (0, 1, 1, 0)},
    "a dropped token": {"dropout_token": 7},
    "all at once": {
        **_NO_TABLES, "heads": 4, "kv_heads": 2, "head": 18, "norm": "pre", "normalise": "rms", "gated": True,
        "rotary": "halves", "rotary_size": 10, "window": 11, "local": "01", "relative": "buckets", "buckets": 16,
        "distance": 50, "scale": 0.2, "dropout_token": 3, "intermediate": 77, "embedding": 40,
    },
}  # fmt: skip
"""One attribute each, and the last one many."""

SPECS = {name: replace(SMALL, **options) for name, options in {**FAMILIES, **ATTRIBUTES}.items()}


def random_weights(spec: EncoderSpec, generator: torch.Generator, words: int = 50, positions: int = 3000) -> Weights:
    """fp32 weights of a trained model's magnitudes; tables that the encoder lacks have no rows."""
    tables = {"word": words, "position": positions, "segment": 3}
    found: dict[str, Tensor] = {name: torch.zeros(0, spec.width) for name in tables}
    matrices, vectors = [], []
    for slot in slots(spec):
        if slot.kind == "table":
            found[slot.name] = torch.randn(tables[slot.name], spec.width, generator=generator) * 0.5
        elif slot.kind == "matrix":
            matrices.append(torch.randn(slot.elements, generator=generator) * slot.columns**-0.5)
        else:
            vectors.append(_random_vector(spec, slot, generator))
    return Weights(*found.values(), torch.cat(matrices), torch.cat(vectors))


def _random_vector(spec: EncoderSpec, slot: Slot, generator: torch.Generator) -> Tensor:
    part = slot.name.rpartition(".")[2]
    if part.startswith("rotary"):
        theta = 10000.0 if part == "rotary" else 500.0
        pairs = slot.rows // 2 if spec.rotary == "interleaved" else slot.rows
        exact = theta ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        # Neighbours' frequencies are followed by what fp32 leaves of them.
        return torch.cat([exact.float(), (exact - exact.float()).float()])[: slot.rows]
    if part == "slopes":
        return 2.0 ** -torch.arange(1.0, slot.rows + 1)
    scale = {"relative": 1.0, "position_keys": 0.7, "position_queries": 0.7}.get(part, 0.1)
    return torch.randn(slot.rows, generator=generator) * scale + (part == "gamma")


def encoder(
    ids: Tensor,
    segments: Tensor,
    mask: Tensor,
    weights: Weights,
    spec: EncoderSpec,
    output: str = "hidden",
    operand: Callable[[int, Tensor], Tensor] = lambda index, x: x,
) -> Tensor:
    """What ``torch.ops.efft.encode`` should return for texts padded on the right, in the tables' type.

    ``operand(i, x)`` stands for what becomes of x, the input of the arena's i-th matrix, before the product.
    """
    return _Encoder(weights, spec, operand)(ids, segments, mask, output)


class _Encoder:
    def __init__(self, weights: Weights, spec: EncoderSpec, operand: Callable[[int, Tensor], Tensor]) -> None:
        self.spec = spec
        self.weights = weights
        self.dtype = weights.word.dtype
        self.operand = operand
        self.slots = {slot.name: slot for slot in slots(spec)}
        self.matrices = [slot.name for slot in slots(spec) if slot.kind == "matrix"]
        self.arena = weights.matrices.to(self.dtype)

    def __call__(self, ids: Tensor, segments: Tensor, mask: Tensor, output: str) -> Tensor:
        spec = self.spec
        x = self.norm("embedding_norm", self.embedded(ids, segments, mask))
        if spec.embedding is not None:
            x = self.linear("projection", x)
        for layer in range(spec.layers):
            own = spec.layer_of[layer] if spec.layer_of else layer
            x = self.layer(f"{own}.", x, mask, spec.local[layer : layer + 1] == "1")
        if spec.norm == "pre":
            x = self.norm("final_norm", x)
        return reduce(x, mask, output)

    def vector(self, name: str) -> Tensor:
        return self.slots[name].of(self.weights.vectors).to(self.dtype)

    def linear(self, name: str, x: Tensor) -> Tensor:
        x = self.operand(self.matrices.index(name), x)
        return F.linear(x, self.slots[name].of(self.arena), self.vector(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.gamma" not in self.slots:
            return x
        gamma, beta = self.vector(f"{name}.gamma"), self.vector(f"{name}.beta")
        if self.spec.normalise == "rms":
            return F.rms_norm(x, gamma.shape, gamma, self.spec.epsilon) + beta
        return F.layer_norm(x, gamma.shape, gamma, beta, self.spec.epsilon)

    def embedded(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        spec = self.spec
        x = self.weights.word[ids]
        if spec.dropout_token is not None:
            dropped = ids == spec.dropout_token
            share = (dropped & (mask != 0)).sum(1) / mask.sum(1).clamp(min=1)
            x = x.masked_fill(dropped[..., None], 0)
            factor = torch.where(share < 1, 0.88 / (1 - share), 0)  # nothing is left where all are dropped
            x = x * factor[:, None, None].to(self.dtype)
        if spec.positions != "none":
            shape = Shape(positions=spec.positions, offset=spec.offset, pad=spec.pad)
            x = x + self.weights.position[position_rows(ids, mask, shape)]
        return x + self.weights.segment[segments] if spec.types else x

    def layer(self, prefix: str, x: Tensor, mask: Tensor, local: bool) -> Tensor:
        pre = self.spec.norm == "pre"
        inner = self.norm(f"{prefix}attention_norm", x) if pre else x
        context = self.attention(prefix, self.linear(f"{prefix}qkv", inner), mask, local)
        x = x + self.linear(f"{prefix}attention_output", context)
        x = x if pre else self.norm(f"{prefix}attention_norm", x)
        up = self.linear(f"{prefix}intermediate", self.norm(f"{prefix}output_norm", x) if pre else x)
        step = STEPS[self.spec.activation]
        if self.spec.gated:
            gate, up = up.chunk(2, -1)
            up = step(gate) * up
        else:
            up = step(up)
        x = x + self.linear(f"{prefix}output", up)
        return x if pre else self.norm(f"{prefix}output_norm", x)

    def attention(self, prefix: str, qkv: Tensor, mask: Tensor, local: bool) -> Tensor:
        spec = self.spec
        batch, length, _ = qkv.shape
        kv = spec.kv_heads or spec.heads
        q, k, v = (
            part.view(batch, length, -1, spec.head_size).transpose(1, 2)
            for part in qkv.split([spec.context, kv * spec.head_size, kv * spec.head_size], -1)
        )
        if spec.rotary != "none":
            frequencies = self.slots["rotary_local" if local else "rotary"].of(self.weights.vectors)
            q, k = (self.turned(x, frequencies) for x in (q, k))
        k, v = (x.repeat_interleave(spec.heads // kv, 1) for x in (k, v))
        distance = torch.arange(length)[:, None] - torch.arange(length)
        scores = q @ k.transpose(-1, -2)
        if spec.relative == "disentangled":
            scores = scores + self.with_positions(prefix, q, k, distance)
        kinds = spec.c2p + spec.p2c if spec.relative == "disentangled" else 0
        scores = scores * (spec.scale or (spec.head_size * (1 + kinds)) ** -0.5)
        if spec.relative == "buckets":
            scores = scores + self.vector("relative").view(spec.buckets, spec.heads)[self.t5(distance)].permute(2, 0, 1)
        elif spec.relative == "alibi":
            scores = scores - self.vector("slopes")[:, None, None] * distance.abs().to(self.dtype)
        unseen = (mask == 0)[:, None, None, :]
        if local:
            unseen = unseen | (distance.abs() > spec.window)
        scores = scores.masked_fill(unseen, torch.finfo(self.dtype).min)
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, spec.context)

    def turned(self, x: Tensor, frequencies: Tensor) -> Tensor:
        """The pairs of a head's first elements turned by angles that are rounded to fp32, or (neighbours) are not, as
        transformers' are."""
        if self.spec.rotary == "halves":
            angles = torch.arange(x.shape[-2]).float()[:, None] * frequencies
        else:
            angles = torch.arange(x.shape[-2]).double()[:, None] * frequencies.double().view(2, -1).sum(0)
        size = 2 * angles.shape[-1]
        cosine, sine = angles.double().cos().to(self.dtype), angles.double().sin().to(self.dtype)
        part, rest = x[..., :size], x[..., size:]
        if self.spec.rotary == "halves":
            a, b = part.chunk(2, -1)
            return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], -1)
        a, b = part[..., ::2], part[..., 1::2]
        pairs = torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1)
        return torch.cat([pairs.flatten(-2), rest], -1)

    def t5(self, distance: Tensor) -> Tensor:
        """The bucket of each distance, by transformers."""
        from transformers.models.t5.modeling_t5 import T5Attention

        return T5Attention._relative_position_bucket(-distance, True, self.spec.buckets, self.spec.distance)

    def with_positions(self, prefix: str, q: Tensor, k: Tensor, distance: Tensor) -> Tensor:
        """The two products of DeBERTa, gathered by bucket as transformers gathers them."""
        from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

        spec = self.spec
        bucket = make_log_bucket_position(distance, spec.buckets, spec.distance) if spec.buckets else distance
        rows = (bucket.long() + spec.span).clamp(0, 2 * spec.span - 1).expand(*q.shape[:2], -1, -1)
        back = (-bucket.long() + spec.span).clamp(0, 2 * spec.span - 1).expand(*q.shape[:2], -1, -1)
        total = torch.zeros((), dtype=self.dtype)
        if spec.c2p:
            total = total + (q @ self.positions(f"{prefix}position_keys")).gather(-1, rows)
        if spec.p2c:
            total = total + (k @ self.positions(f"{prefix}position_queries")).gather(-1, back).transpose(-1, -2)
        return total

    def positions(self, name: str) -> Tensor:
        """[heads, head, 2 span]."""
        return self.vector(name).view(2 * self.spec.span, self.spec.heads, self.spec.head_size).permute(1, 2, 0)
