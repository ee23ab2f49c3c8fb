"""Each family with one constant that is a little wrong, on the GPU: its error tells; the right ones pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builder.checkpoint import Checkpoint, load
from builder.encoder import PackedWeights, pack, tensors_of
from builder.families import EncoderSpec, spec_of
from builder.gate.compare import compare
from builder.gate.probes import positional_probes
from builder.models import assemble, encoder_of
from handler.config import SetupConfig
from tests.checkpoints import make_checkpoint
from tests.parity.test_wrong_constants import WRONG

Packed = Callable[[str], tuple[Checkpoint, nn.Module, EncoderSpec, PackedWeights]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    @cache
    def make(family: str) -> tuple[Checkpoint, nn.Module, EncoderSpec, PackedWeights]:
        task = "token_classification" if family == "t5" else "sequence_classification"
        checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path_factory.mktemp("model"), family, task))))
        spec = spec_of(checkpoint.config)
        model = checkpoint.load_model()
        return (
            checkpoint,
            model,
            spec,
            pack(tensors_of(encoder_of(checkpoint, model)), checkpoint.family, spec, torch.float32),
        )

    return make


def passes(packed: Packed, family: str, wrong: Any = None) -> bool:
    checkpoint, model, spec, weights = packed(family)
    vectors = weights.vectors.clone()
    if callable(wrong):
        wrong(spec, vectors)
    elif wrong is not None:
        spec = replace(spec, **wrong)
    candidate = assemble(checkpoint, model, replace(weights, vectors=vectors), None)
    candidate.encoder.spec = spec
    there = candidate.cuda()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.cpu() for output in there(*(x.cuda() for x in inputs)))

    return compare(checkpoint, run, "fp32", None, "cuda:0", positional_probes(checkpoint)).passed


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_constant_tells(packed: Packed, what: str) -> None:
    family, wrong = WRONG[what]
    assert not passes(packed, family, wrong)


@pytest.mark.parametrize("family", sorted({family for family, _ in WRONG.values()}))
def test_the_right_ones_pass(packed: Packed, family: str) -> None:
    assert passes(packed, family)
