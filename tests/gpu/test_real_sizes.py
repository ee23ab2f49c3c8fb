"""Random encoders of the sizes of each family's base model through the gate on the GPU, in every type, as a worker
serves them there: weights prepared, the third call of each batch, which replays what the second one captured. Float64
and plain PyTorch run on the GPU, too, where they reach the end of the longest text in seconds."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.t5.modeling_t5 import T5Attention

from builder.checkpoint import Checkpoint, load
from builder.encoder import NAMES, prepare
from builder.gate.compare import compare
from builder.gate.probes import WORK, probes
from builder.models import DTYPES, packed_model
from handler.config import SetupConfig
from tests.checkpoints import make_checkpoint
from tests.parity.test_real_sizes import SIZES

DEVICE = "cuda:0"
MORE = 4
"""Times the gate's operations for its long text: all of these sizes reach their end."""


def on_the_cpu(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def call(positions: Tensor, *inputs: Any, **named: Any) -> Tensor:
        return function(positions.cpu(), *inputs, **named).to(positions.device)

    return call


@pytest.fixture(autouse=True)
def buckets_as_where_archives_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of distances are rounded logarithms, which transformers takes in fp32 on the model's device: at the end
    of a bucket a GPU's may fall into the next one. An archive's are the CPU's."""
    monkeypatch.setattr(deberta, "make_log_bucket_position", on_the_cpu(deberta.make_log_bucket_position))
    for owner, name in ((MPNetEncoder, "relative_position_bucket"), (T5Attention, "_relative_position_bucket")):
        monkeypatch.setattr(owner, name, staticmethod(on_the_cpu(getattr(owner, name))))


def served(checkpoint: Checkpoint, data_type: str) -> Callable[..., tuple[Tensor, ...]]:
    model = packed_model(checkpoint, DTYPES[data_type], pooling="mean").to(DEVICE)
    ready = prepare(model.encoder.spec, model.encoder)
    for name in NAMES:
        setattr(model.encoder, name, getattr(ready, name))

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        there = [x.to(DEVICE) for x in inputs]
        outputs = [model(*there) for _ in range(3)]
        return tuple(output.cpu() for output in outputs[-1])

    return run


@pytest.mark.large
@pytest.mark.parametrize("family", SIZES)
def test_base(tmp_path: Path, family: str) -> None:
    start = time.monotonic()
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, family, "embedding", **SIZES[family]))))
    failed = []
    for data_type in DTYPES:
        inputs = probes(checkpoint, MORE * WORK)
        verdict = compare(checkpoint, served(checkpoint, data_type), data_type, "mean", DEVICE, inputs, truth_on=DEVICE)
        # With -s it is seen at once, also from one of several processes.
        print(f"{family} {data_type} {verdict.line()}; {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        start = time.monotonic()
        failed += [] if verdict.passed else [f"{data_type}: {verdict.line()}"]
    assert not failed, "\n".join(failed)
