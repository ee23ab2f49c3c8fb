"""Search the fastest cuBLASLt algorithm for each matrix product of an encoder, on the GPU of this machine.

The winners go into ``gemm_config.json``: one readable line a product, with the device, driver and library versions they
were measured on. Only products that run through cuBLASLt use them: fp32 and tf32, every type on chips before or after
Hopper, and on Hopper those of many tokens for which the library's own kernels are not the faster ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from builder.families import EncoderSpec
from builder.slots import matrices
from handler.gemm_config import COLUMNS, TYPES, environment

EIGHTHS = 8
"""Buckets between two powers of two, as ``kernels/cuda/engine/path.cu`` rounds tokens."""

TOKENS = (
    *(32, 64, 128, 256, 512),
    *(1024 * 2**octave * (EIGHTHS + part) // EIGHTHS for octave in range(4) for part in range(EIGHTHS)),
    16384,
)
"""Rows to tune for unless told: every bucket from 1,024 tokens on, where products take long, some below."""


def tune(
    spec: EncoderSpec,
    dtype: torch.dtype,
    *,
    tf32: bool = False,
    tokens: tuple[int, ...] = TOKENS,
    candidates: int = 24,
) -> dict[str, Any]:
    """Time some ``candidates`` of each product for each number of tokens; the content of ``gemm_config.json``.

    Needs the CUDA library loaded and a GPU. Takes about a tenth of a second a product.
    """
    like = torch.empty(0, dtype=dtype, device="cuda")
    products = dict.fromkeys((slot.rows, slot.columns) for slot in matrices(spec))
    plans = []
    for rows in tokens:
        for outputs, inputs in products:
            plan = torch.ops.efft.tune_product(like, tf32, rows, outputs, inputs, candidates).tolist()
            plans.append({**dict(zip(COLUMNS, plan, strict=True)), "type": TYPES[plan[0]]})
    return {"environment": environment(), "plans": plans}


def write(config: dict[str, Any], path: Path) -> None:
    """Write a config with one line a plan."""
    lines = ",\n  ".join(json.dumps(plan) for plan in config["plans"])
    path.write_text(f'{{"environment": {json.dumps(config["environment"])},\n "plans": [\n  {lines}\n]}}\n')
