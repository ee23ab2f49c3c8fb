"""The models and batches that CPU engines are compared on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORKLOADS = {
    "1x16": [16],
    "1x32": [32],
    "1x128": [128],
    "1x384": [384],
    "8x128": [103, 57, 90, 38, 128, 26, 45, 89],
    "8x384": [307, 171, 270, 115, 384, 77, 137, 268],
    "32x128": [
        29, 51, 128, 109, 84, 56, 53, 88, 103, 43, 84, 97, 82, 39, 115, 113,
        78, 55, 78, 52, 40, 62, 106, 103, 63, 25, 39, 35, 74, 62, 117, 39,
    ],
}  # fmt: skip
"""Sequence lengths, uniform in [S/8, S] with the longest S and a mean of 0.5625 S."""

WORDS = 2000


@dataclass(frozen=True)
class Shape:
    """An encoder without an embedding projection, LayerNorm after each block."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    pre_norm: bool = False

    @property
    def embedding(self) -> int:
        """The tables' width."""
        return self.hidden


MODELS = {"base": Shape(12, 768, 12, 3072), "minilm": Shape(6, 384, 12, 1536)}


def operations(shape: Shape, lengths: list[int]) -> float:
    """Multiplications and additions on valid tokens, matrix products only."""
    per_token = 2 * (4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate)
    return shape.layers * float(sum(n * per_token + 4 * n * n * shape.hidden for n in lengths))


class Layer(nn.Module):
    """A BERT layer on padded input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, i = shape.hidden, shape.intermediate
        self.heads = shape.heads
        self.qkv, self.attention_output = nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.intermediate, self.output = nn.Linear(h, i), nn.Linear(i, h)
        self.attention_norm, self.output_norm = nn.LayerNorm(h, 1e-12), nn.LayerNorm(h, 1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, S, H]; bias [B, 1, 1, S] is added to the scores."""
        b, s, h = x.shape
        q, k, v = (part.view(b, s, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(b, s, h)
        x = self.attention_norm(x + self.attention_output(context))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class Encoder(nn.Module):
    """A padded BERT encoder in plain PyTorch, from ids to hidden states."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(WORDS, shape.hidden), nn.Embedding(512, shape.hidden)
        self.segment, self.norm = nn.Embedding(2, shape.hidden), nn.LayerNorm(shape.hidden, 1e-12)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """int64 [B, S] each to [B, S, H]."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.word(ids) + self.position(positions) + self.segment(segments))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        return x


@dataclass(frozen=True)
class Case:
    """Random weights of a model's shape; good for time, not for accuracy."""

    shape: Shape
    plain: Encoder

    @staticmethod
    def random(model: str) -> Case:
        """The same weights at every call."""
        torch.manual_seed(0)
        encoder = Encoder(MODELS[model]).eval()
        for name, parameter in encoder.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.5 if "layers" not in name else parameter.shape[1] ** -0.5)
        return Case(MODELS[model], encoder)

    def batch(self, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, segments and mask."""
        mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(WORDS, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
        return ids, torch.zeros_like(ids), mask

    def arenas(self) -> tuple[Tensor, Tensor]:
        """Matrices and vectors in the order of kernels/include/efft/encoder.h, fp32."""
        matrices, vectors = [], [self.plain.norm.weight, self.plain.norm.bias]
        for layer in self.plain.layers:
            matrices += [
                layer.qkv.weight,
                layer.attention_output.weight,
                layer.intermediate.weight,
                layer.output.weight,
            ]
            vectors += [layer.qkv.bias, layer.attention_output.bias]
            vectors += [layer.attention_norm.weight, layer.attention_norm.bias, layer.intermediate.bias]
            vectors += [layer.output.bias, layer.output_norm.weight, layer.output_norm.bias]
        return torch.cat([m.detach().flatten() for m in matrices]), torch.cat([v.detach() for v in vectors])
