"""The parity gate's inputs: random ids in the shapes that go wrong first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from builder.checkpoint import Checkpoint
from builder.families import max_positions

Inputs = tuple[Tensor, Tensor, Tensor]
"""ids, segments and mask, int64 [B, S]."""


def probes(checkpoint: Checkpoint) -> Iterator[tuple[str, Inputs]]:
    """Named inputs: one token, the longest sequence, a full batch of mixed lengths, pairs with segments."""
    generator = torch.Generator().manual_seed(20)
    longest = min(max_positions(checkpoint.config), checkpoint.max_length or 1 << 30)
    yield "one token", _batch(checkpoint, [1], generator)
    yield f"longest sequence ({longest} tokens)", _batch(checkpoint, [longest], generator)
    mixed = [min(n, longest) for n in (1, 2, 3, 5, 7, 8, 11, 16, 17, 23, 31, 32, 33, 48, 64, 65, 77, 96, 100, 128)]
    yield f"batch of {len(mixed)} mixed lengths", _batch(checkpoint, mixed, generator)
    pairs = [min(n, longest) for n in (4, 9, 20, 33, 47, 70)]
    yield f"{len(pairs)} pairs", _batch(checkpoint, pairs, generator, pairs=True)


def _batch(checkpoint: Checkpoint, lengths: list[int], generator: torch.Generator, *, pairs: bool = False) -> Inputs:
    size = (len(lengths), max(lengths))
    pad = checkpoint.config.pad_token_id or 0
    ids = torch.randint(pad + 1, checkpoint.config.vocab_size, size, generator=generator)
    positions = torch.arange(size[1])
    mask = (positions < torch.tensor(lengths)[:, None]).long()
    segments = torch.zeros_like(ids)
    if pairs and checkpoint.uses_segments:
        segments = (positions >= torch.tensor(lengths)[:, None] // 2).long() * mask
    return torch.where(mask.bool(), ids, pad), segments, mask
