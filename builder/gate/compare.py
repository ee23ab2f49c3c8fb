"""The gate's first criterion: the error beside plain PyTorch's at the same type.

It is the one flash-attention's tests use: against a reference in float64, the archive's error may be at most twice the
error that plain PyTorch makes. Errors are root mean squares over all outputs of all probes, so that the verdict does
not hang on one unlucky number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from builder.checkpoint import Checkpoint
from builder.errors import BuildError
from builder.gate.probes import Inputs, probes
from builder.gate.verdict import ALLOWED_RATIO, Verdict
from builder.models import DTYPES, per_token, stock_model
from handler.packing import Model as ServedModel

FLOOR = 2.0**-21
"""Relative error that passes in any case: four roundings of fp32, for checkpoints on which PyTorch errs by none."""

Model = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def compare(
    checkpoint: Checkpoint,
    candidate: Model,
    compute: str,
    pooling: str | None,
    device: str = "cpu",
    inputs: Iterable[tuple[str, Inputs]] | None = None,
    truth_on: str = "cpu",
) -> Verdict:
    """Run every probe through the candidate, plain PyTorch in ``compute`` on ``device``, and float64 on ``truth_on``.

    ``inputs``: others than ``builder.gate.probes``.
    """
    reference = stock_model(checkpoint, torch.float64, pooling=pooling).to(truth_on)
    plain = stock_model(checkpoint, DTYPES[compute], pooling=pooling).to(device)
    totals = torch.zeros(3, dtype=torch.float64)
    worst = ("", -1.0)
    count = 0
    reference = reference.double()
    for name, batch in probes(checkpoint) if inputs is None else inputs:
        with torch.inference_mode():
            keep = [batch[2].bool() if each else None for each in per_token(checkpoint)]
            expected = _numbers(_on(truth_on, reference, batch), keep)
            ours = _numbers(candidate(*batch), keep)
            theirs = _numbers(_on(device, plain, batch), keep)
        if ours.shape != expected.shape:
            raise BuildError(f"parity FAILED on {name}: {ours.numel()} outputs, expected {expected.numel()}")
        squares = torch.stack([(ours - expected).square().sum(), (theirs - expected).square().sum()])
        scale = expected.square().sum()
        totals += torch.cat([squares, scale[None]])
        relative = float((squares[0] / scale).sqrt())
        if not relative <= worst[1]:
            worst = (name, relative)
        count += 1
    error, plain_error = (float((total / totals[2]).sqrt()) for total in totals[:2])
    passed = error <= max(ALLOWED_RATIO * plain_error, FLOOR)
    ratio = error / plain_error if plain_error else float("inf") if error else 1.0
    return Verdict(error, plain_error, ratio, worst[0], worst[1], count, passed, device)


def _on(device: str, model: Model, batch: Inputs) -> tuple[Tensor, ...]:
    """What a model that lies on ``device`` answers, on the CPU."""
    return tuple(output.cpu() for output in model(*(x.to(device) for x in batch)))


def _numbers(outputs: tuple[Tensor, ...], keep: list[Tensor | None]) -> Tensor:
    """All numbers of an answer as one float64 vector; ``keep`` [B, S], of each output, marks valid tokens."""
    parts = [o if valid is None else o[valid] for o, valid in zip(outputs, keep, strict=True)]
    return torch.cat([part.reshape(-1).double() for part in parts])


def on_tensors(model: ServedModel, checkpoint: Checkpoint) -> Model:
    """A served model as the gate calls it, with padded batches, whichever form of them it is served with."""
    if getattr(model, "takes_packed", False):
        return partial(_packed, model, per_token(checkpoint))

    def run(ids: Tensor, segments: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(output) for output in model(ids.numpy(), segments.numpy(), mask.numpy()))

    return run


def _packed(
    model: ServedModel, each: tuple[bool, ...], ids: Tensor, segments: Tensor, mask: Tensor
) -> tuple[Tensor, ...]:
    valid = mask.numpy() != 0
    offsets = np.concatenate([[0], valid.sum(1).cumsum()])
    made = model(ids.numpy()[valid], segments.numpy()[valid], offsets)
    outputs = []
    for output, per_row in zip(made, each, strict=True):
        padded = output
        if per_row:
            padded = np.zeros((*valid.shape, *output.shape[1:]), dtype=output.dtype)
            padded[valid] = output
        outputs.append(torch.from_numpy(padded))
    return tuple(outputs)
