"""Batches of token ids with ragged lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """int64 [B, S] each."""

    ids: Tensor
    segments: Tensor
    mask: Tensor

    def to(self, device: str) -> Batch:
        """The same on ``device``."""
        return Batch(*(tensor.to(device) for tensor in self))


def ragged(lengths: Sequence[int], generator: torch.Generator, words: int = 50) -> Batch:
    """Random ids; row b has ``lengths[b]`` valid tokens, then pads."""
    longest = max(lengths)
    ids = torch.randint(words, (len(lengths), longest), generator=generator)
    segments = torch.randint(2, ids.shape, generator=generator)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    return Batch(ids, segments, mask)
