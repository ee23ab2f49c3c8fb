"""Run by ``test_eight_bits``: the path is chosen once for a process. Prints digests of results, or with the argument
``kernels`` the names of the products' kernels."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from builder import ops
from builder.compile import compile_cpu, compile_cuda
from builder.encoder import PackedWeights, encode, prepare
from builder.quantisation.quantise import NUMBERS, Step, quantise
from tests.kernels import reference
from tests.kernels.batches import ragged
from tests.kernels.reference import Shape

SHAPE = Shape(layers=2, hidden=256, heads=4, intermediate=1024)
_PRODUCTS = ("eight_bit_kernel", "eight_bit_portable_kernel")
LENGTHS = [[7], [90, 3, 200], [384] * 3, [31] * 40, [384] * 9]


def main() -> None:
    """A line for each type."""
    ops.load(Path(os.environ.get("EFFT_CPU_LIBRARY") or compile_cpu()))
    torch.ops.load_library(os.environ.get("EFFT_CUDA_LIBRARY") or str(compile_cuda(["90a"])))
    for scheme in NUMBERS:
        generator = torch.Generator().manual_seed(8)
        packed = _packed(scheme, generator)
        if sys.argv[1:] == ["kernels"]:
            print(scheme, *_kernels(packed, ragged(LENGTHS[-1], generator)))
            continue
        for lengths in LENGTHS:
            batch = tuple(tensor.cuda() for tensor in ragged(lengths, generator))
            results = [encode(SHAPE.spec, packed, batch, "hidden").cpu() for _ in range(3)]
            assert all(torch.equal(result, results[0]) for result in results)
            print(hashlib.sha256(results[0].view(torch.uint8).numpy().tobytes()).hexdigest()[:16])


def _packed(scheme: str, generator: torch.Generator) -> PackedWeights:
    weights = reference.random_weights(SHAPE, generator)
    names = [f"{layer}.{name}" for layer in range(SHAPE.layers) for name in ("attention_output", "output")]
    step = Step(8 / NUMBERS[scheme].largest, 128 if scheme == "int8" else 0)
    arena = quantise(weights.matrices, weights.vectors, SHAPE.spec, number=scheme, steps=dict.fromkeys(names, step))
    served = weights.to(torch.bfloat16)
    tensors = (served.word, served.position, served.segment, arena, served.vectors)
    return prepare(SHAPE.spec, PackedWeights(*(tensor.cuda() for tensor in tensors)))


def _kernels(packed: PackedWeights, batch: Any) -> list[str]:
    """The names of the 8-bit products' kernels of a first call, which launches them one by one."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        encode(SHAPE.spec, packed, tuple(tensor.cuda() for tensor in batch), "hidden").cpu()
    names = {event.key for event in seen.key_averages()}
    return sorted({part for name in names for part in _PRODUCTS if part in name})


if __name__ == "__main__":
    main()
