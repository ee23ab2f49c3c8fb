"""Encoders with one attribute beyond BERT's kin each, and with many, against plain PyTorch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from builder.families import EncoderSpec
from tests.kernels import families
from tests.kernels.batches import Batch, ragged
from tests.kernels.criterion import assert_close
from tests.kernels.families import SMALL, SPECS
from tests.kernels.reference import Weights
from tests.kernels.test_encoder import on, tensors

RAGGED = [5, 1, 37, 0, 64, 2]
LENGTHS = [*RAGGED, 15, 16, 17, 31, 33, 48, 100, 130]
BOUNDS = [255, 256, 257, 400, 513]
"""Where blocks of keys of disentangled attention begin."""
FP32_AND_BF16 = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
"""For long texts, of which plain PyTorch makes much work in fp16; the engine computes those in fp32."""


@pytest.fixture
def device(request: pytest.FixtureRequest, _cpu_library: None) -> str:
    """The CPU; tests/gpu has the GPU's."""
    return "cpu"


def run(efft: SimpleNamespace, batch: Batch, weights: Weights, spec: EncoderSpec, output: str = "hidden") -> Tensor:
    """The operator on prepared weights."""
    prepared = efft.prepare_weights(tensors(weights), spec.text())
    return efft.encode(*batch, prepared, spec.text(), output)


def compare(efft, device, dtype, spec: EncoderSpec, lengths: list[int], generator, output: str = "hidden") -> None:
    weights = families.random_weights(spec, generator).to(dtype)
    batch = ragged(lengths, generator)
    truth = families.encoder(*batch, weights.to(torch.float64), spec, output)
    plain = families.encoder(*batch, weights, spec, output)
    actual = run(efft, batch.to(device), on(device, weights), spec, output)
    assert_close(actual.cpu(), plain, truth)


@pytest.mark.parametrize("name", SPECS)
def test_hidden_states(efft, device, dtype, generator, name) -> None:
    compare(efft, device, dtype, SPECS[name], LENGTHS, generator)


@pytest.mark.parametrize("output", ["first", "mean"])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_reduced_outputs(efft, device, dtype, generator, name, output) -> None:
    compare(efft, device, dtype, SPECS[name], RAGGED, generator, output)


@FP32_AND_BF16
@pytest.mark.parametrize("name", ["deberta", "many buckets", "c2p", "p2c"])
def test_positions_across_blocks_of_keys(efft, device, dtype, generator, name) -> None:
    compare(efft, device, dtype, replace(SPECS[name], layers=1), BOUNDS, generator)


@FP32_AND_BF16
@pytest.mark.parametrize("name", ["plain", "modernbert", "mpnet", "many buckets", "a very wide window", "alibi"])
def test_more_keys_than_are_seen_at_once(efft, device, dtype, generator, name) -> None:
    """Sums that are rescaled from block to block of keys."""
    wide = {"window": 700, "local": "1", "relative": "alibi"}
    options = {"plain": {}, "a very wide window": wide}.get(name)
    spec = replace(SMALL, **options) if options is not None else SPECS[name]
    local = spec.local[-1:] if spec.local else ""
    compare(efft, device, dtype, replace(spec, layers=1, local=local), [1025, 3, 1400], generator)


@FP32_AND_BF16
@pytest.mark.parametrize("name", ["modernbert", "many buckets", "all at once"])
def test_neither_threads_nor_neighbours_change_the_result(efft, device, dtype, generator, name) -> None:
    spec = SPECS[name]
    weights = families.random_weights(spec, generator).to(dtype)
    lengths = [1100, 40, 9, 700]
    batch = ragged(lengths, generator)
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outputs.append(run(efft, batch, weights, spec))
            outputs.append(
                torch.cat(
                    [
                        run(efft, Batch(*(t[b : b + 1, :n] for t in batch)), weights, spec)[0]
                        for b, n in enumerate(lengths)
                    ]
                )
            )
    finally:
        torch.set_num_threads(before)
    together, apart, *others = outputs
    assert torch.equal(together[batch.mask != 0], apart)
    assert torch.equal(together, others[0])
    assert torch.equal(apart, others[1])


def test_tables_that_are_absent_have_no_rows(efft, device, generator) -> None:
    """Segments of any value are not looked at, and a table with rows is not either."""
    spec = SPECS["modernbert"]
    weights = families.random_weights(spec, generator)
    batch = ragged([5, 3], generator)
    expected = run(efft, batch, weights, spec)
    assert torch.equal(run(efft, batch._replace(segments=batch.segments + 99), weights, spec), expected)
