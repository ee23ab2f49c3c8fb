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


def joined(batch: Batch) -> Batch:
    """The same texts packed, as ``efft::encode`` takes them: ids and segments [T], offsets as a column [B + 1, S]."""
    valid = batch.mask.bool()
    offsets = torch.nn.functional.pad(valid.sum(1).cumsum(0), (1, 0))
    longest = max(int(valid.sum(1).max()), 1)
    return Batch(batch.ids[valid], batch.segments[valid], offsets.unsqueeze(1).expand(-1, longest))
