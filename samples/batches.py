"""Group examples into batches of similar length, so that little is computed on padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from samples.recipe import Batch

Features = dict[str, list[int] | int]
"""One example: lists are per token and get padded with 0, integers are targets."""


def padded(features: Sequence[Features]) -> Batch:
    """Stack examples into int64 tensors: ``[B, S]`` per token, ``[B]`` per example."""
    length = max(len(f["input_ids"]) for f in features)  # type: ignore[arg-type]
    batch = {}
    for key, first in features[0].items():
        if isinstance(first, list):
            rows = [f[key] + [0] * (length - len(f[key])) for f in features]  # type: ignore[arg-type, operator]
        else:
            rows = [f[key] for f in features]
        batch[key] = torch.tensor(rows)
    return batch


def by_length(features: Sequence[Features], size: int, rng: random.Random | None = None) -> Iterator[Batch]:
    """Batches of ``size`` examples sorted by length; with ``rng``, in random order and with random neighbours."""
    order = sorted(features, key=lambda f: len(f["input_ids"]) + (rng.random() * 16 if rng else 0))  # type: ignore[arg-type]
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if rng:
        rng.shuffle(groups)
    return map(padded, groups)
