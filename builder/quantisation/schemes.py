"""Quantisation schemes: how the model of each is made and how the gate judges it.

What the worker has to know of a scheme is its row in ``handler/schemes.py``; the rest is its row here. Everything else
asks the rows, so that a scheme is added by these two and a module that makes its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from builder.checkpoint import Checkpoint
from builder.gate.verdict import CosineVerdict, Verdict

Made = tuple[nn.Module, dict[str, Any]]
"""A model to be traced, and what archive.json says of its quantisation."""
Judge = Callable[[Checkpoint, Any, str, str | None, Path | None, Mapping[str, Any]], Verdict | CosineVerdict]


SHARES = (0.9, 0.6, 0.3)
"""Of the distance that the gate allows, what the choice of matrices may use up; the next one where it is refused."""


def shares(scheme: str) -> tuple[float, ...]:
    """What an archive is made with, one after the other while the gate refuses it."""
    return SHARES if RECIPES[scheme].judged_by == "cosine" else SHARES[:1]


@dataclass(frozen=True)
class Recipe:
    """``make`` takes a checkpoint, the compute type's name, a pooling, maybe a file of texts, the matrices that are to
    be kept, one of ``SHARES``, and whether a GPU is to answer too; ``judge`` the first four, but for the loaded model
    (``handler.packing.Model``) behind the checkpoint, and what ``make`` said at the end."""

    make: Callable[[Checkpoint, str, str | None, Path | None, Collection[str], float, bool], Made]
    judge: Judge
    takes_texts: bool
    """Whether texts of the user's help to make it."""
    judged_by: Literal["error", "cosine"]
    """By its error beside plain PyTorch's of the same type, or, where PyTorch has no such type, by angles."""
    sentence_distance: float = 0.0
    """Of those judged by cosine: the allowed one minus the cosine of an embedding; of rerank scores, their distance as
    a share of the scores' size."""


def _plain(
    checkpoint: Checkpoint,
    compute: str,
    pooling: str | None,
    _texts: Path | None,
    _keep: Collection[str],
    _share: float,
    _gpu: bool,
) -> Made:
    from builder.models import DTYPES, packed_model

    return packed_model(checkpoint, DTYPES[compute], pooling=pooling), {}


def _judge_plain(
    checkpoint: Checkpoint,
    model: Any,
    compute: str,
    pooling: str | None,
    _texts: Path | None,
    _made: Mapping[str, Any],
) -> Verdict:
    from builder.gate.compare import compare, on_tensors

    return compare(checkpoint, on_tensors(model, checkpoint), compute, pooling)


def _eight_bits(scheme: str) -> Recipe:
    def make(
        checkpoint: Checkpoint,
        compute: str,
        pooling: str | None,
        texts: Path | None,
        keep: Collection[str],
        share: float,
        gpu: bool,
    ) -> Made:
        from builder.quantisation.eight_bits import quantised_model

        return quantised_model(checkpoint, pooling, texts, scheme, compute, keep, share, gpu)

    def judge(
        checkpoint: Checkpoint,
        model: Any,
        _compute: str,
        pooling: str | None,
        texts: Path | None,
        made: Mapping[str, Any],
    ) -> CosineVerdict:
        from builder.quantisation.eight_bits import judge

        return judge(checkpoint, model, pooling, texts, scheme, made.get("kept", ()))

    return Recipe(make, judge, takes_texts=True, judged_by="cosine", sentence_distance=0.02)


RECIPES: dict[str, Recipe] = {
    "none": Recipe(_plain, _judge_plain, takes_texts=False, judged_by="error"),
    "int8": _eight_bits("int8"),
    "fp8": _eight_bits("fp8"),
}
"""By the names of ``handler.schemes.SCHEMES``."""
