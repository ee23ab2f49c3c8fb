"""Run by ``test_eight_bits``: the path is chosen once for a process. Prints digests of results."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from builder import ops
from builder.compile import compile_cpu, compile_cuda
from builder.encoder import PackedWeights, encode, prepare
from builder.quantisation.quantise import NUMBERS, Step, quantise
from tests.kernels import reference
from tests.kernels.batches import ragged
from tests.kernels.reference import Shape

SHAPE = Shape(layers=2, hidden=256, heads=4, intermediate=1024)
LENGTHS = [[7], [90, 3, 200], [384] * 3, [31] * 40, [384] * 9]


def main() -> None:
    """A line for each type."""
    ops.load(Path(os.environ.get("EFFT_CPU_LIBRARY") or compile_cpu()))
    torch.ops.load_library(os.environ.get("EFFT_CUDA_LIBRARY") or str(compile_cuda(["90a"])))
    for scheme, number in NUMBERS.items():
        generator = torch.Generator().manual_seed(8)
        weights = reference.random_weights(SHAPE, generator)
        names = [f"{layer}.{name}" for layer in range(SHAPE.layers) for name in ("attention_output", "output")]
        step = Step(8 / number.largest, 128 if scheme == "int8" else 0)
        arena = quantise(weights.matrices, weights.vectors, SHAPE.spec, number=scheme, steps=dict.fromkeys(names, step))
        served = weights.to(torch.bfloat16)
        tensors = (served.word, served.position, served.segment, arena, served.vectors)
        packed = prepare(SHAPE.spec, PackedWeights(*(tensor.cuda() for tensor in tensors)))
        for lengths in LENGTHS:
            batch = tuple(tensor.cuda() for tensor in ragged(lengths, generator))
            results = [encode(SHAPE.spec, packed, batch, "hidden").cpu() for _ in range(3)]
            assert all(torch.equal(result, results[0]) for result in results)
            print(hashlib.sha256(results[0].view(torch.uint8).numpy().tobytes()).hexdigest()[:16])


if __name__ == "__main__":
    main()
