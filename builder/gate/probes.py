"""The parity gate's inputs: any ids, in the shapes that go wrong first, and those of real texts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from builder.checkpoint import Checkpoint
from builder.families import spec_of
from builder.gate.texts import BY_SCRIPT, ODD, PAIRS, special_texts

Inputs = tuple[Tensor, Tensor, Tensor]
"""ids, segments and mask, int64 [B, S]."""
_LONGEST_TEXT = 64
_SPECIAL_SHARE = 0.1
_LONGEST_REACH = 1100
WORK = 6.5e12
"""Floating-point operations of the long probe: some minutes on two cores in float64, ModernBERT-base's 8,192 tokens."""
_MEMORY, _COPIES = 4 << 30, 6


def probes(checkpoint: Checkpoint, work: float = WORK) -> Iterator[tuple[str, Inputs]]:
    """Named inputs: one token, the longest sequence, a full batch of mixed lengths, pairs with segments, texts.

    ``work`` bounds the longest one's operations where no table of positions has to be proven.

    The drawn ids are any of the vocabulary, the pad id and other special ones within a text among them: a text can hold
    each.
    """
    generator = torch.Generator().manual_seed(20)
    longest, long = checkpoint.longest, long_length(checkpoint, work)
    yield "one token", _batch(checkpoint, [1], generator)
    name = f"longest sequence ({longest} tokens)" if long == longest else f"long sequence ({long} tokens)"
    yield name, _batch(checkpoint, [long], generator)
    mixed = [min(n, longest) for n in (1, 2, 3, 5, 7, 8, 11, 16, 17, 23, 31, 32, 33, 48, 64, 65, 77, 96, 100, 128)]
    yield f"batch of {len(mixed)} mixed lengths", _batch(checkpoint, mixed, generator)
    pairs = [min(n, longest) for n in (4, 9, 20, 33, 47, 70)]
    yield f"{len(pairs)} pairs", _batch(checkpoint, pairs, generator, pairs=True)
    if reached := reaches(checkpoint):
        yield f"{len(reached)} lengths about the reach of attention", _batch(checkpoint, reached, generator)
    texts = [text for texts in BY_SCRIPT.values() for text in texts]
    yield "texts", _tokenized(checkpoint, [*texts, *ODD, *special_texts(checkpoint.tokenizer), *PAIRS])


def reaches(checkpoint: Checkpoint) -> list[int]:
    """Lengths at which attention changes with distance: a window's edge, the ends of buckets, and beyond both."""
    spec = spec_of(checkpoint.config)
    edges = {spec.window, spec.distance, spec.buckets // 2, spec.buckets // 4} - {0}
    lengths = {edge + more for edge in edges for more in (0, 1, 2)} | {2 * edge + 3 for edge in edges}
    return sorted(length for length in lengths if length <= min(checkpoint.longest, _LONGEST_REACH))


def positional_probes(checkpoint: Checkpoint) -> Iterator[tuple[str, Inputs]]:
    """Of the probes those on which constants of attention show most."""
    generator = torch.Generator().manual_seed(21)
    long = long_length(checkpoint, WORK / 32)
    yield f"long sequence ({long} tokens)", _batch(checkpoint, [long], generator)
    lengths = reaches(checkpoint) or [min(n, checkpoint.longest) for n in (3, 17, 64)]
    yield f"{len(lengths)} lengths about the reach of attention", _batch(checkpoint, lengths, generator)


def long_length(checkpoint: Checkpoint, work: float) -> int:
    """The length of the long probe: the longest sequence, or what so many operations allow where that is longer.

    A table of positions is proven to its end; where only distances count, no position is unlike another.
    """
    spec, longest = spec_of(checkpoint.config), checkpoint.longest
    if spec.positions != "none":
        return longest
    matrices = spec.layers * spec.hidden * (4 * spec.hidden + (2 + spec.gated) * spec.intermediate)
    square = 4 * spec.layers * spec.hidden
    within = int((-matrices + math.sqrt(matrices**2 + square * work)) / square)
    if spec.relative != "none":  # transformers keeps several matrices of S x S for each head
        within = min(within, int(math.sqrt(_MEMORY / (_COPIES * 8 * spec.heads))))
    return min(longest, max(within, *reaches(checkpoint), 128))


def _batch(checkpoint: Checkpoint, lengths: list[int], generator: torch.Generator, *, pairs: bool = False) -> Inputs:
    size = (len(lengths), max(lengths))
    pad = checkpoint.config.pad_token_id or 0
    rows = checkpoint.config.vocab_size
    ids = torch.randint(rows, size, generator=generator)
    special = torch.tensor([index for index in checkpoint.tokenizer.all_special_ids if index < rows] or [pad])
    drawn = special[torch.randint(len(special), size, generator=generator)]
    ids = torch.where(torch.rand(size, generator=generator) < _SPECIAL_SHARE, drawn, ids)
    if size[1] > 2:
        ids[:, size[1] // 2] = pad  # of long rows at least one, whatever was drawn
    positions = torch.arange(size[1])
    mask = (positions < torch.tensor(lengths)[:, None]).long()
    segments = torch.zeros_like(ids)
    if pairs and checkpoint.uses_segments:
        segments = (positions >= torch.tensor(lengths)[:, None] // 2).long() * mask
    return torch.where(mask.bool(), ids, pad), segments, mask


def _tokenized(checkpoint: Checkpoint, texts: list[str | tuple[str, str]]) -> Inputs:
    """As the checkpoint's own tokenizer cuts them, padded on the right."""
    limit = min(_LONGEST_TEXT, checkpoint.longest)
    rows = [
        checkpoint.tokenizer(*([text] if isinstance(text, str) else text), truncation=True, max_length=limit)
        for text in texts
    ]
    size = (len(rows), max(len(row.input_ids) for row in rows))
    ids = torch.full(size, checkpoint.config.pad_token_id or 0)
    segments, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, row in enumerate(rows):
        length = len(row.input_ids)
        ids[place, :length] = torch.tensor(row.input_ids)
        mask[place, :length] = 1
        if checkpoint.uses_segments:
            segments[place, :length] = torch.tensor(row.get("token_type_ids", [0] * length))
    return ids, segments, mask
