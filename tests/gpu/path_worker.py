"""Run by ``test_paths``: the path is chosen once for a process."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch

from builder import ops
from builder.compile import compile_cpu, compile_cuda
from tests.gpu.encoders import Pair, batch, check, encode, make_pair

SIZES = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "max_position_embeddings": 400}
LENGTHS = [[7], [90, 3, 200], [384] * 3, [31] * 40, [384] * 9]


def main() -> None:
    """``check``: errors and digests; ``digests``; ``refused``: what a model in fp32 is told."""
    ops.load(Path(os.environ.get("EFFT_CPU_LIBRARY") or compile_cpu()))
    torch.ops.load_library(os.environ.get("EFFT_CUDA_LIBRARY") or str(compile_cuda(["90a"])))
    if sys.argv[1] == "refused":
        pair = make_pair("bert", "fp32", **SIZES)
        try:
            encode(pair, *batch(pair, [7]))
        except RuntimeError as error:
            print(str(error).splitlines()[0])
        return
    for data_type in ("fp16", "bf16"):
        pair = make_pair("bert", data_type, **SIZES)
        if sys.argv[1] == "check":
            for seed, lengths in enumerate(LENGTHS):
                check(pair, lengths, seed=seed)
        print(*(_digest(pair, lengths) for lengths in LENGTHS))


def _digest(pair: Pair, lengths: list[int]) -> str:
    """Of a direct call, a captured and a replayed one."""
    inputs = batch(pair, lengths)
    results = [encode(pair, *inputs).cpu() for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)
    return hashlib.sha256(results[0].view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
