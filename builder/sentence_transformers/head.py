"""What stands behind an embedding model's encoder: pooling over tokens, then layers over the vector.

The definitions are those of sentence-transformers' modules of the same names, written for traces: nothing depends on
the shape of one batch, and no tensor is made on a fixed device.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLED, PROMPT = 1, 2
"""Values of a mask: a token, and a token of a prompt that pooling leaves out. 0 is a pad."""


class SentenceHead(nn.Module):
    """Hidden states [B, S, H] and mask [B, S] to vectors [B, D], in fp32 at least.

    ``poolings`` are sentence-transformers' names, their vectors joined in that order. With ``pooled`` the encoder has
    pooled already and gives [B, H].
    """

    def __init__(self, poolings: Sequence[str], layers: Sequence[nn.Module], *, pooled: bool = False) -> None:
        super().__init__()
        self.poolings = tuple(poolings)
        self.layers = nn.Sequential(*copy.deepcopy(list(layers)))
        self.pooled = pooled

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        vector = hidden if self.pooled else torch.cat([pool(hidden, mask, name) for name in self.poolings], -1)
        return self.layers(vector)


def pool(hidden: Tensor, mask: Tensor, name: str) -> Tensor:
    """hidden [B, S, H], mask [B, S] of POOLED tokens and others -> [B, H]. Values on the others do not count."""
    chosen = mask == POOLED
    places = torch.cumsum(torch.ones_like(mask), 1)  # 1 to S
    if name == "cls":
        return _row(hidden, chosen.int().argmax(1))
    if name == "lasttoken":
        return _row(hidden, (places * chosen).argmax(1))
    if name == "max":
        return hidden.masked_fill(~chosen.unsqueeze(-1), float("-inf")).amax(1)
    weights = (places * chosen if name == "weightedmean" else chosen).unsqueeze(-1).to(hidden.dtype)
    total = (hidden * weights).sum(1)
    count = weights.sum(1).clamp(min=1e-9)
    return total / (count.sqrt() if name == "mean_sqrt_len_tokens" else count)


def _row(hidden: Tensor, index: Tensor) -> Tensor:
    """hidden [B, S, H], index [B] -> the row [B, H] of each."""
    return hidden.gather(1, index.view(-1, 1, 1).expand(-1, -1, hidden.shape[-1])).squeeze(1)


class Dense(nn.Module):
    """A linear layer and its activation, with a residual where ``residual`` is given."""

    def __init__(self, linear: nn.Module, activation: nn.Module, residual: nn.Module | None) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]."""
        made = self.activation(self.linear(x))
        return made if self.residual is None else made + self.residual(x)


class Normalize(nn.Module):
    """To length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return F.normalize(x, p=2.0, dim=-1)
