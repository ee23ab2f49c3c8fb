"""Quantisation schemes: how the model of each is made and how the gate judges it.

What the worker has to know of a scheme is its row in ``handler/schemes.py``; the rest is its row here. Everything else
asks the rows, so that a scheme is added by these two and a module that makes its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from builder.checkpoint import Checkpoint
from builder.gate.verdict import CosineVerdict, Verdict

Made = tuple[nn.Module, dict[str, Any]]
"""A model to be traced, and what archive.json says of its quantisation."""
Judge = Callable[[Checkpoint, Any, str, str | None, Path | None], Verdict | CosineVerdict]


@dataclass(frozen=True)
class Recipe:
    """``make`` takes a checkpoint, the compute type's name, a pooling and maybe a file of texts; ``judge`` the same but
    for the loaded model (``handler.packing.Model``) behind the checkpoint."""

    make: Callable[[Checkpoint, str, str | None, Path | None], Made]
    judge: Judge
    takes_texts: bool
    """Whether texts of the user's help to make it."""
    judged_by: Literal["error", "cosine"]
    """By its error beside plain PyTorch's of the same type, or, where PyTorch has no such type, by angles."""
    sentence_distance: float = 0.0
    """Of those judged by cosine: the allowed one minus the cosine of an embedding; of rerank scores, their distance as
    a share of the scores' size."""


def _plain(checkpoint: Checkpoint, compute: str, pooling: str | None, _texts: Path | None) -> Made:
    from builder.models import DTYPES, packed_model

    return packed_model(checkpoint, DTYPES[compute], pooling=pooling), {}


def _judge_plain(checkpoint: Checkpoint, model: Any, compute: str, pooling: str | None, _texts: Path | None) -> Verdict:
    from builder.gate.compare import compare, on_tensors

    return compare(checkpoint, on_tensors(model), compute, pooling)


def _int8(checkpoint: Checkpoint, _compute: str, pooling: str | None, texts: Path | None) -> Made:
    from builder.quantisation.int8 import quantised_model

    return quantised_model(checkpoint, pooling, texts)


def _judge_int8(
    checkpoint: Checkpoint, model: Any, _compute: str, pooling: str | None, texts: Path | None
) -> CosineVerdict:
    from builder.quantisation.int8 import judge

    return judge(checkpoint, model, pooling, texts)


RECIPES: dict[str, Recipe] = {
    "none": Recipe(_plain, _judge_plain, takes_texts=False, judged_by="error"),
    "int8": Recipe(_int8, _judge_int8, takes_texts=True, judged_by="cosine", sentence_distance=0.02),
}
"""By the names of ``handler.schemes.SCHEMES``."""
