"""One build of ``benchmarks.gpu.beside``: answers questions, a line of JSON each, about random encoders."""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Call, intervals

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> None:
    """Load the libraries named on the command line, then answer until the input ends."""
    for library in sys.argv[1:]:
        torch.ops.load_library(library)
    call: Call | None = None
    for line in sys.stdin:
        question = json.loads(line)
        if question["what"] == "bits":
            call = None  # lets the weights go
            call = make(question["model"], question["data_type"], question["lengths"], question["padded"])
            answer: Any = [digest(call()) for _ in range(3)]  # launched step by step, captured, replayed
        else:
            assert call is not None
            answer = milliseconds(call, question["milliseconds"])
        print(json.dumps(answer), flush=True)


def digest(result: Tensor) -> str:
    """Of the result's bytes."""
    return hashlib.sha256(result.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def milliseconds(call: Call, budget: float) -> float:
    """The median of as many calls as fit into so many milliseconds."""
    once = max(1e3 * statistics.median(intervals(call, 3)), 1e-3)
    return 1e3 * statistics.median(intervals(call, max(3, min(200, int(budget / once)))))


def make(model: dict[str, Any], data_type: str, lengths: list[int], padded: int) -> Call:
    """A random encoder, its weights prepared, and a batch bound to it."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    dtype = TYPES[data_type]
    layers, hidden, width, inner = (model[key] for key in ("layers", "hidden", "embedding", "intermediate"))

    def normal(*size: int, scale: float = 0.02, of: torch.dtype = dtype) -> Tensor:
        return (torch.randn(size, generator=generator, device="cuda") * scale).to(of)

    projects, pre = width != hidden, model.get("pre_norm", False)
    elements = layers * (4 * hidden * hidden + 2 * hidden * inner) + (hidden * width if projects else 0)
    vectors = layers * (9 * hidden + inner) + 2 * width + (hidden if projects else 0) + (2 * hidden if pre else 0)
    tables = [normal(rows, width) for rows in (30522, 514, 2)]
    arena, parameters = normal(elements), 0.5 + normal(vectors, scale=0.1, of=torch.float32)
    arena = torch.ops.efft.prepare(arena, layers, hidden, width, inner, parameters)
    mask = (torch.arange(padded, device="cuda") < torch.tensor(lengths, device="cuda")[:, None]).long()
    ids = torch.randint(3, 30522, mask.shape, generator=generator, device="cuda") * mask
    options = (
        layers, hidden, model["heads"], inner, model.get("activation", "gelu"), pre, 1e-12,
        model.get("position_offset", 0), model.get("count_positions", False), "hidden",
    )  # fmt: skip
    segments = torch.zeros_like(ids)
    return lambda: torch.ops.efft.encoder(ids, segments, mask, *tables, arena, parameters, *options)


if __name__ == "__main__":
    main()
