"""What every sample provides, and the numbers its training runs on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

Batch = dict[str, Tensor]
"""Keyword arguments of the model's forward, targets included, so that its output carries a loss."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training run. ``rank`` and ``alpha`` are LoRA's; ``warmup`` is a share of all steps."""

    epochs: int
    batch_size: int
    learning_rate: float
    rank: int = 16
    alpha: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0


class Sample(Protocol):
    """One sample model: its architecture, its training batches and its measure."""

    name: str
    head: tuple[str, ...]
    recipe: Recipe

    def new_model(self, **options: Any) -> PreTrainedModel:
        """The base encoder with this task's head, not yet trained; ``options`` go into its config."""

    def epoch(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, progress: float) -> Iterator[Batch]:
        """The batches of one epoch; ``progress`` in [0, 1) is the share of the training already done."""

    def evaluate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
        """Dev figures by name, percentages."""
