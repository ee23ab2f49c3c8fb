"""The workloads: sizes, sequence lengths, and the operations and bytes that bound them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LENGTHS: dict[str, list[int]] = json.loads((Path(__file__).parent.parent / "workloads.json").read_text())["gpu"]


@dataclass(frozen=True)
class Size:
    """A model's size; intermediate is four times hidden, heads have 64 columns."""

    layers: int
    hidden: int

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.hidden // 64

    @property
    def parameters(self) -> int:
        """Weights in the encoder's matrices."""
        return self.layers * 12 * self.hidden**2

    def operations(self, lengths: list[int]) -> float:
        """Floating-point operations on valid tokens: products with weights and, within each sequence, attention."""
        products = 2.0 * sum(lengths) * self.parameters
        return products + self.layers * 4.0 * self.hidden * sum(length**2 for length in lengths)


SIZES = {"base": Size(12, 768), "large": Size(24, 1024)}


def batch(lengths: list[int], columns: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids and mask int64 [B, S] on the GPU, pads on the right."""
    size = (len(lengths), columns or max(lengths))
    mask = (torch.arange(size[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1000, 30000, size, generator=torch.Generator().manual_seed(seed)) * mask
    return ids.cuda(), mask.cuda()


def columns(workload: str) -> int:
    """The padded length in a workload's name."""
    return int(workload.split("x")[1])


def squad_lengths() -> list[int]:
    """10,833 lengths with the mean and spread of SQuAD v1.1's validation set, mean 178."""
    draws = np.random.default_rng(0).normal(178, 65, 10833)
    return [int(length) for length in np.clip(np.rint(draws), 32, 384)]
