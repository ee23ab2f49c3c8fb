"""Encoder workloads: a batch size, a padded length and the valid lengths within it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_PUBLISHED = json.loads(Path(__file__).with_name("workloads.json").read_text())


def published(device: str) -> list[str]:
    """The sizes whose lengths are published: for ``cpu`` those of ``uniform``, for ``gpu`` those of ``rand_r``."""
    return list(_PUBLISHED[device])


@dataclass(frozen=True)
class Workload:
    """``len(lengths)`` sequences padded to ``padded`` tokens. Only valid tokens count as work."""

    lengths: tuple[int, ...]
    padded: int
    distribution: str

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def name(self) -> str:
        """Batch and length as the tables write them, such as ``8x128``."""
        return f"{self.batch}x{self.padded}"

    @property
    def tokens(self) -> int:
        """Valid tokens."""
        return sum(self.lengths)

    @property
    def padding_share(self) -> float:
        """Share of the padded tensor that is padding, 0 to 1."""
        return 1 - self.tokens / (self.batch * self.padded)


@dataclass(frozen=True)
class Batch:
    """A workload's inputs: int64 [B, S] each, pads on the right and zero."""

    workload: Workload
    ids: Tensor
    segments: Tensor
    mask: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """ids, segments, mask: what every model here is called with."""
        return self.ids, self.segments, self.mask

    def rows(self) -> Iterator[Batch]:
        """Each sequence as a batch of its own, without padding."""
        for index, length in enumerate(self.workload.lengths):
            part = tuple(t[index : index + 1, :length].contiguous() for t in self.tensors)
            yield Batch(Workload((length,), length, self.workload.distribution), *part)


def make_batch(workload: Workload, vocabulary: int, device: str | torch.device = "cpu", seed: int = 0) -> Batch:
    """Random token ids for a workload."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (workload.batch, workload.padded), generator=generator)
    mask = (torch.arange(workload.padded) < torch.tensor(workload.lengths)[:, None]).long()
    return Batch(workload, *(t.to(device) for t in (ids * mask, torch.zeros_like(ids), mask)))


def rand_r(seed: int) -> Iterator[int]:
    """The numbers glibc's ``rand_r`` gives, 0 to 2^31 - 1: what FasterTransformer's example draws its lengths with."""
    state = seed
    while True:
        result = 0
        for bits in (11, 10, 10):
            state = (state * 1103515245 + 12345) % 2**32
            result = (result << bits) ^ ((state // 65536) % (1 << bits))
        yield result


def _full(batch: int, length: int) -> list[int]:
    return [length] * batch


def _half(batch: int, length: int) -> list[int]:
    """One full sequence, so that the padded length is what it says, and the others half as long."""
    return [length] + [max(1, length // 2)] * (batch - 1)


def _rand_r(batch: int, length: int) -> list[int]:
    numbers = rand_r(0)
    return [max(1, next(numbers) % length) for _ in range(batch)] if batch > 1 else [length]


def _uniform(batch: int, length: int) -> list[int]:
    """Uniform in [S/8, S], the longest S; the published ones where there are any of this size."""
    published = _PUBLISHED["cpu"].get(f"{batch}x{length}")
    if published:
        return list(published)
    drawn = np.random.default_rng(0).integers(max(1, length // 8), length + 1, batch)
    drawn[drawn.argmax()] = length
    return [int(n) for n in drawn]


def _squad(batch: int, length: int) -> list[int]:
    """Lengths like SQuAD's with stride windows: normal, mean 178, within [32, 384] and the given length."""
    drawn = np.clip(np.rint(np.random.default_rng(0).normal(178, 65, 10833)), 32, 384)[:batch]
    return [min(int(n), length) for n in drawn]


DISTRIBUTIONS: dict[str, Callable[[int, int], list[int]]] = {
    "full": _full,
    "half": _half,
    "rand_r": _rand_r,
    "uniform": _uniform,
    "squad": _squad,
}
"""By name; each gives the valid lengths for a batch size and a padded length."""


def make_workload(size: str, distribution: str) -> Workload:
    """The workload of a size such as ``8x128``. A batch of one is always full.

    Raises ValueError for a size or a distribution that cannot be read.
    """
    batch, separator, length = size.partition("x")
    if not separator or not batch.isdigit() or not length.isdigit() or not int(batch) * int(length):
        raise ValueError(f"{size!r} is no workload; write batch x length, such as 8x128")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"no length distribution {distribution!r}; there are {', '.join(DISTRIBUTIONS)}")
    draw = _full if batch == "1" else DISTRIBUTIONS[distribution]
    return Workload(tuple(draw(int(batch), int(length))), int(length), distribution)
