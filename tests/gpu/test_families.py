"""Encoders beyond BERT's kin on the GPU against plain PyTorch: one attribute each, families, sizes of every kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builder.families import EncoderSpec
from tests.gpu.encoders import DTYPES
from tests.kernels import families
from tests.kernels.batches import Batch, ragged
from tests.kernels.criterion import assert_close
from tests.kernels.families import FAMILIES, SPECS
from tests.kernels.reference import Weights
from tests.kernels.test_encoder import on, tensors

RAGGED = [5, 1, 37, 0, 64, 2]
MIXED = [130, 33, 64, 1, 300]
SIZED = EncoderSpec(layers=2, hidden=256, heads=4, intermediate=512)
"""Sizes for which sm_90a has kernels of its own."""
WIDE = {
    **{name: replace(SIZED, **options) for name, options in FAMILIES.items() if name not in ("albert", "t5")},
    "albert": replace(SIZED, embedding=128, activation="gelu_tanh", layer_of=(0, 0)),
    "t5": replace(SIZED, **{**FAMILIES["t5"], "head": 64, "heads": 6, "gated": True, "activation": "gelu_tanh"}),
    "modernbert": replace(SIZED, **{**FAMILIES["modernbert"], "window": 64}),
    "deberta": replace(SIZED, **{**FAMILIES["deberta"], "buckets": 256, "distance": 512}),
    "eurobert": replace(SIZED, **{**FAMILIES["eurobert"], "kv_heads": 2}),
    "nomic": replace(SIZED, positions="none", gated=True, activation="silu", rotary="halves"),
    "gte": replace(SIZED, positions="none", types=False, gated=True, rotary="halves", head=32),
    "heads of 128": replace(SIZED, **{**FAMILIES["modernbert"], "window": 30, "head": 128, "heads": 2}),
    "wide deberta": replace(SIZED, **{**FAMILIES["deberta"], "head": 128, "heads": 2}),
}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def encode(batch: Batch, weights: Weights, spec: EncoderSpec, output: str = "hidden", prepared: bool = True) -> Tensor:
    held = tensors(weights)
    if prepared:  # as a worker serves it
        held = torch.ops.efft.prepare_weights(held, spec.text())
    return torch.ops.efft.encode(*batch, held, spec.text(), output)


def reference(batch: Batch, weights: Weights, spec: EncoderSpec, output: str, dtype: torch.dtype) -> Tensor:
    with torch.device("cuda"):
        return families.encoder(*batch, weights.to(dtype), spec, output)


def compare(spec: EncoderSpec, dtype: torch.dtype, lengths: list[int], generator, output: str = "hidden") -> None:
    """By the criterion, beside the worse of PyTorch's runs of the batch: on the GPU and, in fp32, on the CPU."""
    weights = families.random_weights(spec, generator, positions=max(lengths) + 100).to(dtype)
    batch = ragged(lengths, generator)
    there, held = batch.to("cuda"), on("cuda", weights)
    truth = reference(there, held, spec, output, torch.float64).cpu()
    runs = [reference(there, held, spec, output, dtype)]
    if dtype == torch.float32 and sum(lengths) < 1000:
        runs.append(families.encoder(*batch, weights, spec, output).cuda())
    plain = max(runs, key=lambda run: (run.double().cpu() - truth).abs().max().item())
    assert_close(encode(there, held, spec, output), plain, truth)


@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize("name", SPECS)
def test_an_attribute(generator, name: str, data_type: str) -> None:
    for lengths in (RAGGED, MIXED):
        compare(SPECS[name], DTYPES[data_type], lengths, generator)


@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize("name", WIDE)
def test_a_family_on_every_kernel(generator, name: str, data_type: str) -> None:
    """One sequence and several, few tokens and many, keys that fit in shared memory and not."""
    for lengths in ([128], [7], RAGGED, [300, 7, 129], [384] * 9, [31] * 40, [1500, 64]):
        compare(WIDE[name], DTYPES[data_type], lengths, generator)


@pytest.mark.parametrize("name", ["modernbert", "mpnet", "deberta", "nomic", "alibi"])
@pytest.mark.parametrize("data_type", DTYPES)
def test_long_texts(generator, name: str, data_type: str) -> None:
    compare(replace(WIDE[name], layers=1, local=WIDE[name].local[-1:]), DTYPES[data_type], [4100, 3], generator)


@pytest.mark.parametrize("output", ["first", "mean"])
@pytest.mark.parametrize("name", FAMILIES)
def test_reduced_outputs(generator, name: str, output: str) -> None:
    compare(SPECS[name], torch.float16, RAGGED, generator, output)


def test_buckets_that_skip_rows(generator) -> None:
    """Distances next to each other may be many rows of the table apart."""
    spec = replace(WIDE["deberta"], buckets=256, distance=131)
    for dtype in DTYPES.values():
        compare(spec, dtype, [300, 7, 129], generator)


@pytest.mark.parametrize("name", WIDE)
def test_neither_graphs_nor_preparing_nor_capturing_change_the_result(generator, name: str) -> None:
    spec = WIDE[name]
    weights = on("cuda", families.random_weights(spec, generator).to(torch.float16))
    batch = ragged([300, 7, 129], generator).to("cuda")
    held = torch.ops.efft.prepare_weights(tensors(weights), spec.text())
    first = torch.ops.efft.encode(*batch, held, spec.text(), "hidden")
    for _ in range(3):  # step by step, captured, replayed
        assert torch.equal(torch.ops.efft.encode(*batch, held, spec.text(), "hidden"), first)
    truth = reference(batch, weights, spec, "hidden", torch.float64).cpu()
    plain = reference(batch, weights, spec, "hidden", torch.float16)
    assert_close(encode(batch, weights, spec, prepared=False), plain, truth)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.ops.efft.encode(*batch, held, spec.text(), "hidden")
    graph.replay()
    torch.cuda.synchronize()
    assert_close(captured, plain, truth)


def test_too_many_buckets_are_refused_in_one_line(generator) -> None:
    spec = replace(WIDE["mpnet"], buckets=4096, distance=100_000)
    weights = on("cuda", families.random_weights(spec, generator).to(torch.float16))
    with pytest.raises(RuntimeError, match="buckets: the CUDA engine runs at most 2048, got 4096"):
        torch.ops.efft.prepare_weights(tensors(weights), spec.text())
