"""What stands behind an encoder whose answer is more than one pooled vector.

Written for traces as :mod:`builder.sentence_transformers.head` is: nothing depends on the shape of one batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 3
"""Value of a mask: a token that has a vector and that no token attends to."""


def attended(mask: Tensor) -> Tensor:
    """mask [B, S] of any marks -> 1 on what tokens attend to, 0 on the rest."""
    return ((mask > 0) & (mask != EXPANSION)).long()


class SpladePool(nn.Module):
    """Vocabulary logits [B, S, V] and mask [B, S] to weights [B, V], as sentence-transformers' SpladePooling.

    The largest logit is taken first and transformed then: both functions grow with it, so the weight is the same.
    """

    def __init__(self, pooling: str, activation: str) -> None:
        super().__init__()
        self.sums = pooling == "sum"
        self.twice = activation == "log1p_relu"

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        valid = (mask > 0).unsqueeze(-1)
        if self.sums:
            return (self._weights(logits) * valid).sum(1)
        return self._weights(logits.masked_fill(~valid, float("-inf")).amax(1))

    def _weights(self, logits: Tensor) -> Tensor:
        weights = torch.relu(logits).log1p()
        return weights.log1p() if self.twice else weights


class SpladeHead(nn.Module):
    """A masked language model's head and its pooling: hidden states [B, S, H] and mask [B, S] to [B, V]."""

    def __init__(self, vocabulary: nn.Module, pool: SpladePool) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.pool = pool

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        return self.pool(self.vocabulary(hidden, mask), mask)


class TokenLayers(nn.Module):
    """Layers over every token's vector: [B, S, H] to [B, S, D], in fp32 at least."""

    pointwise = True  # see builder.heads

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*copy.deepcopy(list(layers)))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        return self.layers(hidden.to(torch.promote_types(hidden.dtype, torch.float32)))


class LexicalWeights(nn.Module):
    """A weight for every token: [B, S, H] to [B, S]. BGE-M3 (Chen et al., "M3-Embedding", ACL Findings 2024)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = copy.deepcopy(linear)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return F.relu(self.linear(hidden)).squeeze(-1)


class SeveralHeads(nn.Module):
    """Heads side by side over the same hidden states; the answer is a tuple, theirs in order."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return tuple(head(hidden, mask) for head in self.heads)
