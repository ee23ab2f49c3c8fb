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
from builder.models import DTYPES, stock_model
from handler.archive import ArchiveFacts
from handler.config import Limits, SetupConfig
from handler.packing import Arrays, Model
from handler.predictor import Predictor, Reply
from handler.tokenizer import Tokenizer

_TOO_LONG = ("too_long", "too_large")
_SMALL = 50_000_000
"""Parameters."""


def prove_answers(stage: Path, checkpoint: Checkpoint, config: SetupConfig, model: Model) -> int:
    """Ask all requests of the task at once, as a server's batch; returns their number.

    Raises BuildError in one line with the first request that is answered otherwise than transformers answers it.
    """
    if config.scheme != "none" or DTYPES[config.compute] is not torch.float32:
        model = _InFloat(stock_model(checkpoint, torch.float32, pooling=None))
    predictor = open_predictor(stage, config, model)
    reference = REFERENCES[checkpoint.task](checkpoint, checkpoint.longest)
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


def open_predictor(stage: Path, config: SetupConfig, model: Model) -> Predictor:
    """The archive's own task code, free of the config's limits: what is proved is what a text becomes."""
    facts = ArchiveFacts.load(stage / "archive.json")
    free = {"allow_overrides": True, "truncation": "truncate", "limits": Limits(), "warm_up": False}
    length = min(facts.max_positions, config.max_length or facts.max_positions)
    tokenizer = Tokenizer(stage / "tokenizer.json", length, facts.uses_segments, cut_side=facts.truncation_side)
    return Predictor(facts, config.model_copy(update=free), tokenizer, model)


class _InFloat:
    """A module behind the handler's model signature, on the CPU."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.device = torch.device("cpu")

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        with torch.inference_mode():
            outputs = self.module(*(torch.from_numpy(array) for array in (ids, segments, mask)))
            return tuple(output.float().numpy() for output in outputs)
