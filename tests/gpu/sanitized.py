"""Small encoders for compute-sanitizer, which slows every access: each path of the engine once, in each type."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from builder import ops
from tests.gpu import test_families as families
from tests.gpu.encoders import DTYPES, batch, encode, make_pair
from tests.kernels.batches import ragged
from tests.kernels.families import random_weights
from tests.kernels.reference import Weights
from tests.kernels.test_encoder import on

SIZES = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256, "num_hidden_layers": 2}
CASES: list[tuple[str, list[int], dict[str, int]]] = [
    ("bert", [37], {}),
    ("bert", [5, 0, 33, 64], {}),
    ("bert", [200] * 12, {"max_position_embeddings": 256}),
    ("bert", [19, 3], {"hidden_size": 60, "num_attention_heads": 2}),
    ("roberta-prelayernorm", [19, 40], {}),
    ("electra", [19, 40], {}),
]
BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
WIDE: list[tuple[str, list[int], dict[str, int]]] = [
    ("bert", [128] * 4, BASE),
    ("bert", [200, 150, 180], {**BASE, "num_hidden_layers": 1, "max_position_embeddings": 256}),
]
"""For the kernel of many tokens, in the chain and beside cuBLASLt; in one type, since they take their time."""


NEWER = ("modernbert", "deberta", "mpnet", "eurobert", "esm")
"""Specs of ``tests.gpu.test_families``: rotary, windows, gates, shared keys, tables of distances, bands."""


def main() -> None:
    """Three calls a case: launched one by one, captured, replayed."""
    ops.load(Path(os.environ["EFFT_CPU_LIBRARY"]))
    torch.ops.load_library(os.environ["EFFT_CUDA_LIBRARY"])
    runs = [(case, data_type) for case in CASES for data_type in DTYPES]
    for (family, lengths, sizes), data_type in [*runs, *((case, "fp16") for case in WIDE)]:
        pair = make_pair(family, data_type, "hidden", **{**SIZES, **sizes})
        inputs = batch(pair, lengths)
        results = [encode(pair, *inputs) for _ in range(3)]
        torch.cuda.synchronize()
        assert torch.isfinite(results[0]).all(), "a result is no number"
        assert all(torch.equal(result, results[0]) for result in results[1:]), "calls differ"
    for name in NEWER:
        for dtype in (torch.float32, torch.float16):
            _run_newer(name, dtype)


def _run_newer(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    spec = families.WIDE[name]
    weights: Weights = on("cuda", random_weights(spec, generator).to(dtype))
    inputs = ragged([37, 0, 200], generator).to("cuda")
    results = [families.encode(inputs, weights, spec) for _ in range(3)]
    torch.cuda.synchronize()
    assert torch.isfinite(results[0]).all(), "a result is no number"
    assert all(torch.equal(result, results[0]) for result in results[1:]), "calls differ"


if __name__ == "__main__":
    main()
