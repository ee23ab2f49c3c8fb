"""Which matrices move a task's answers most when they are rounded.

The worst token's cosine over the gate's inputs bounds what 8 bits may cost, but says little of which matrices do it: a
value that falls to the other side of a step turns that one token by more than a matrix does. What all answers to plain
texts move by does say it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from builder.checkpoint import Checkpoint
from builder.encoder import PackedWeights
from builder.gate.probes import Inputs
from builder.models import CLASSIFIERS, PackedModel, assemble, encoder_of, per_token
from builder.quantisation.calibration import hidden_states
from builder.quantisation.emulated import emulated
from builder.quantisation.quantise import Rounder

_ANSWERED = (*CLASSIFIERS, "token_classification", "question_answering", "embedding")
"""Tasks whose heads make a few numbers; of others, over a vocabulary or of several kinds, hidden states are taken."""


def by_answers(
    checkpoint: Checkpoint,
    stock: nn.Module,
    served: PackedWeights,
    pooling: str | None,
    rounder: Rounder,
    texts: Sequence[Inputs],
) -> Callable[[Sequence[str]], list[str]]:
    """What orders matrices by how far the answers to ``texts`` move where one of them alone is rounded, from the
    farthest to the mildest.

    ``stock`` is the checkpoint as transformers has it; ``served`` its weights in the type between products.
    """
    every = [slot.name for slot in rounder.slots]
    base, model = encoder_of(checkpoint, stock), assemble(checkpoint, stock, served, pooling)

    def ranked(matrices: Sequence[str]) -> list[str]:
        exact = _answers(checkpoint, base, model, texts)
        moved = {}
        for matrix in matrices:
            with emulated(checkpoint, base, rounder, [other for other in every if other != matrix]):
                found = _answers(checkpoint, base, model, texts)
            moved[matrix] = float((found - exact).square().sum().nan_to_num(nan=torch.inf))
        return sorted(matrices, key=lambda matrix: moved[matrix], reverse=True)

    return ranked


def _answers(checkpoint: Checkpoint, base: nn.Module, model: PackedModel, texts: Sequence[Inputs]) -> Tensor:
    """All numbers of all answers; without those on pads."""
    found = []
    for batch in texts:
        mask = batch[2]
        hidden = hidden_states(checkpoint, base, batch)
        if checkpoint.task not in _ANSWERED:
            found.append(hidden[mask.bool()])
            continue
        with torch.inference_mode():
            made = model.answer(pooled(hidden, mask, model.encoder.output), mask)
        found += [m[mask.bool()] if tokens else m for m, tokens in zip(made, per_token(checkpoint), strict=True)]
    return torch.cat([made.flatten() for made in found]).double()


def pooled(hidden: Tensor, mask: Tensor, output: str) -> Tensor:
    """What the encoder's operator gives of hidden states [B, S, H] where ``output`` is asked for."""
    if output == "first":
        return hidden[:, 0]
    if output == "hidden":
        return hidden
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)
