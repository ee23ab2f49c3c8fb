"""Random encoders of the sizes of each family's base model through the gate on the GPU, in every type, as a worker
serves them there: weights prepared, the third call of each batch, which replays what the second one captured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from builder.checkpoint import Checkpoint, load
from builder.encoder import NAMES, prepare
from builder.families import spec_of
from builder.gate.compare import compare
from builder.gate.probes import WORK, probes
from builder.gate.verdict import Verdict
from builder.models import DTYPES, packed_model
from handler.config import SetupConfig
from tests.checkpoints import make_checkpoint
from tests.parity.test_real_sizes import SIZES

DEVICE = "cuda:0"


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


def judged(checkpoint: Checkpoint, data_type: str) -> Verdict:
    """Beside PyTorch on the GPU, where float64 reaches the longest text in seconds.

    Buckets of distances are rounded logarithms, which transformers takes in fp32 on the model's device: at the end of a
    bucket a GPU's may fall into the next one. An archive's are the CPU's, so there both references run on the CPU, and
    the long text is only as long as crosses every bucket.
    """
    near = spec_of(checkpoint.config).relative == "none"
    where, work = (DEVICE, 4 * WORK) if near else ("cpu", WORK / 32)
    candidate = served(checkpoint, data_type)
    return compare(checkpoint, candidate, data_type, "mean", where, probes(checkpoint, work), truth_on=where)


@pytest.mark.large
@pytest.mark.parametrize("family", SIZES)
def test_base(tmp_path: Path, family: str) -> None:
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, family, "embedding", **SIZES[family]))))
    failed = []
    for data_type in DTYPES:
        start = time.monotonic()
        verdict = judged(checkpoint, data_type)
        print(f"{family} {data_type} {verdict.line()}; {time.monotonic() - start:.0f} s")
        failed += [] if verdict.passed else [f"{data_type}: {verdict.line()}"]
    assert not failed, "\n".join(failed)
