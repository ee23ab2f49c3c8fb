"""An encoder in plain PyTorch, computed from a spec and its packed weights alone, as ``efft/spec.h`` says.

In float64 it separates what the builder hands over from what an engine makes of it. Sequences are padded on the right.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.encoder import PackedWeights
from builder.families import EncoderSpec
from builder.slots import slots

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu, "silu": F.silu}


class PlainEncoder:
    """``__call__(ids, segments, mask)``, int64 [B, S], gives hidden states [B, S, H] in float64."""

    def __init__(self, spec: EncoderSpec, packed: PackedWeights) -> None:
        self.spec = spec
        arenas = {"matrix": packed.matrices.double(), "vector": packed.vectors.double()}
        self.at: dict[str, Tensor] = {
            slot.name: getattr(packed, slot.name).double() if slot.kind == "table" else slot.of(arenas[slot.kind])
            for slot in slots(spec)
        }

    def __call__(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        spec, pre = self.spec, self.spec.norm == "pre"
        x = self._embed(ids, segments, mask)
        for place in range(spec.layers):
            layer = spec.layer_of[place] if spec.layer_of else place
            local = spec.local[place : place + 1] == "1"
            read = self._norm(x, f"{layer}.attention_norm") if pre and (spec.first_norm or place) else x
            x = x + self._linear(self._attend(read, mask, layer, local), f"{layer}.attention_output")
            x = x if pre else self._norm(x, f"{layer}.attention_norm")
            read = self._norm(x, f"{layer}.output_norm") if pre else x
            x = x + self._linear(self._activate(self._linear(read, f"{layer}.intermediate")), f"{layer}.output")
            x = x if pre else self._norm(x, f"{layer}.output_norm")
        return self._norm(x, "final_norm") if pre else x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.at[name], self.at[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        gamma, beta = self.at[f"{name}.gamma"], self.at[f"{name}.beta"]
        if self.spec.normalise == "layer":
            return F.layer_norm(x, x.shape[-1:], gamma, beta, self.spec.epsilon)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.spec.epsilon) * gamma + beta

    def _activate(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.spec.activation]
        if not self.spec.gated:
            return act(x)
        gate, up = x.chunk(2, -1)
        return act(gate) * up

    def _embed(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        spec = self.spec
        x = self.at["word"][ids]
        if spec.dropout_token is not None:
            dropped = (ids == spec.dropout_token) & mask.bool()
            share = dropped.sum(1) / mask.sum(1)
            x = x.masked_fill(dropped[..., None], 0) * (0.88 / (1 - share))[:, None, None]
        if spec.positions == "ids":
            counted = (ids != spec.pad).long()
            x = x + self.at["position"][counted.cumsum(1) * counted + spec.pad]
        elif spec.positions != "none":
            x = x + self.at["position"][torch.arange(ids.shape[1]) + spec.offset]
        x = x + self.at["segment"][segments] if spec.types else x
        x = self._norm(x, "embedding_norm") if spec.embedding_norm else x
        return self._linear(x, "projection") if spec.width != spec.hidden else x

    def _attend(self, x: Tensor, mask: Tensor, layer: int, local: bool) -> Tensor:
        spec, size = self.spec, self.spec.head_size
        batch, length, _ = x.shape
        kv_heads = spec.kv_heads or spec.heads
        parts = self._linear(x, f"{layer}.qkv").split([spec.context, kv_heads * size, kv_heads * size], -1)
        q, k, v = (part.view(batch, length, -1, size).transpose(1, 2) for part in parts)
        if spec.rotary != "none":
            q, k = (self._rotate(part, local) for part in (q, k))
        k, v = (part.repeat_interleave(spec.heads // kv_heads, 1) for part in (k, v))
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        kinds = spec.c2p + spec.p2c if spec.relative == "disentangled" else 0
        scale = (size * (1 + kinds)) ** -0.5 if spec.scale is None else spec.scale
        logits = (q @ k.transpose(-1, -2) + self._disentangled(q, k, distance, layer)) * scale
        if spec.relative == "buckets":
            table = self.at["relative"].view(spec.buckets, spec.heads)
            logits = logits + table[_t5_bucket(distance, spec.buckets, spec.distance)].permute(2, 0, 1)
        seen = mask.bool()[:, None, None, :] & (distance.abs() <= spec.window if local else distance > -length)
        attended = logits.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0) @ v
        return attended.transpose(1, 2).reshape(batch, length, spec.context)

    def _rotate(self, x: Tensor, local: bool) -> Tensor:
        table = self.at["rotary_local" if local else "rotary"]
        size = self.spec.rotary_size or self.spec.head_size
        places = torch.arange(x.shape[2])
        if self.spec.rotary == "halves":  # the angle is rounded to fp32, as transformers has it
            angle = (places.float()[:, None] * table.float()).double()
            a, b = x[..., : size // 2], x[..., size // 2 : size]
            turned = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin())
            return torch.cat([*turned, x[..., size:]], -1)
        angle = places.double()[:, None] * table.view(-1, size // 2).sum(0)
        a, b = x[..., 0:size:2], x[..., 1:size:2]
        turned = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
        return torch.cat([turned.flatten(-2), x[..., size:]], -1)

    def _disentangled(self, q: Tensor, k: Tensor, distance: Tensor, layer: int) -> Tensor | int:
        spec: Any = self.spec
        if spec.relative != "disentangled":
            return 0
        row = (_deberta_bucket(distance, spec.buckets, spec.distance) + spec.span).clamp(0, 2 * spec.span - 1)
        row = row.expand(*q.shape[:2], *row.shape)
        added: Tensor | int = 0
        for wanted, name in ((spec.c2p, "position_keys"), (spec.p2c, "position_queries")):
            if wanted:
                table = self.at[f"{layer}.{name}"].view(2 * spec.span, spec.heads, -1).transpose(0, 1)
                side = q if name == "position_keys" else k
                every = side @ table.transpose(-1, -2)
                # c2p[i, j] = q_i . PK[row(i, j)]; p2c[i, j] = k_j . PQ[row(i, j)]
                if name == "position_keys":
                    added = added + every.gather(-1, row)
                else:
                    added = added + every.gather(-1, row.transpose(-1, -2)).transpose(-1, -2)
        return added


def _t5_bucket(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    """``distance``: of the query from the key, i - j."""
    half = buckets // 2
    exact, far = half // 2, distance.abs()
    large = exact + (torch.log(far.float() / exact) / math.log(farthest / exact) * (half - exact)).long()
    return torch.where(far < exact, far, large.clamp(max=half - 1)) + (distance < 0) * half


def _deberta_bucket(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    middle = buckets // 2
    if not buckets:
        return distance
    far = distance.abs().clamp(min=middle)
    log = torch.log(far / middle) / torch.log(torch.tensor((farthest - 1) / middle)) * (middle - 1)
    return torch.where(distance.abs() <= middle, distance, (log.ceil().long() + middle) * distance.sign())
