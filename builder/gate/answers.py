"""The gate, end to end: requests through the archive's tokenizer, model and task code, against transformers' answers.

The figures of :mod:`builder.gate.parity` bound what the model's arithmetic loses. Whether the right ids reach the model
and the right labels leave it is a matter of yes or no: at fp32 the archive's own model answers, at other types its task
code answers with the checkpoint's model in fp32, so that the same narrow tolerance holds for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder.checkpoint import Checkpoint
from builder.errors import BuildError
from builder.gate.references import REFERENCES, Payload
from builder.models import stock_model
from handler.archive import ArchiveFacts
from handler.config import Limits, SetupConfig
from handler.packing import Arrays, Model
from handler.predictor import Predictor, Reply
from handler.tokenizer import Tokenizer

_TOO_LONG = ("too_long", "too_large")
_SMALL = 50_000_000
"""Parameters."""


def prove_answers(
    stage: Path, facts: ArchiveFacts, config: SetupConfig, checkpoint: Checkpoint, model: Model, pooling: str | None
) -> int:
    """Ask all requests of the task at once, as a server's batch; returns their number.

    ``pooling``: the checkpoint's, for embeddings, whatever the archive says of itself.
    Raises BuildError in one line with the first request that is answered otherwise than transformers answers it.
    """
    if facts.data_type != "fp32":
        model = _InFloat(stock_model(checkpoint, torch.float32, pooling=pooling))
    predictor = _predictor(stage, facts, config, model)
    reference = REFERENCES[facts.task](checkpoint, checkpoint.longest, pooling)
    requests = list(reference.payloads())
    replies = predictor.predict([{"body": payload} for _, payload in requests], deadline=float("inf"))
    with _threads_for(reference.model):
        for (name, payload), reply in zip(requests, replies, strict=True):
            if problem := _problem(reference, payload, reply):
                raise BuildError(f"parity FAILED: {name} is answered with {problem}; no archive was written")
    return len(requests)


@contextmanager
def _threads_for(model: torch.nn.Module) -> Iterator[None]:
    """One thread for a small model: texts are short, and on a busy machine two of them wait for each other."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _problem(reference: Any, payload: Payload, reply: Reply) -> str | None:
    if reply.status == 200:
        return reference.problem(payload, reply.payload)
    error = reply.payload["error"]
    # Texts that leave no room beside them are refused by design where a config's limit is very small.
    return None if error["type"] in _TOO_LONG else f"the error {error['message']!r}"


def _predictor(stage: Path, facts: ArchiveFacts, config: SetupConfig, model: Model) -> Predictor:
    """The archive's, except that it takes every request, whatever the config limits or forbids."""
    open_config = config.model_copy(update={"allow_overrides": True, "limits": Limits()})
    length = min(facts.max_positions, config.max_length or facts.max_positions)
    tokenizer = Tokenizer(stage / "tokenizer.json", length, facts.uses_segments)
    return Predictor(facts, open_config, tokenizer, model)


class _InFloat:
    """A module behind the handler's model signature, on the CPU."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.device = torch.device("cpu")

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        with torch.inference_mode():
            outputs = self.module(*(torch.from_numpy(array) for array in (ids, segments, mask)))
            return tuple(output.float().numpy() for output in outputs)
