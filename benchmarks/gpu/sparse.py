"""2:4 sparsity where an encoder would use it: BERT's products by cuSPARSELt beside the dense ones, on this GPU.

``python -m benchmarks.gpu.sparse`` prints a line for each product and writes ``sparse-cuda-DATE.json``;
``python -m benchmarks tables docs/eight-bits.md`` puts the table into the documentation. What is timed has no bias, no
residual and no GELU; our own 8-bit products scale their results besides. Weights are pruned by magnitude (the two
smaller ones of each four in a row); a product's time counts only where its result is that of the same weights in fp64.
Operands are rounded beforehand, for either alike.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import libraries, machine, results, table
from benchmarks.measuring import first_line
from benchmarks.models import SIZES
from benchmarks.timing import captured, interleave, intervals
from builder.quantisation.unbuilt import pruned24

TYPES = ("fp8", "int8", "fp16")
ROWS = (4_096, 12_288, 16_384)
COPIES = 6
"""Weight matrices that take turns, so that none is still in the L2 cache when its turn comes again."""
_ALLOWED = {torch.float16: 5e-3, torch.bfloat16: 1e-2}
"""Relative error of a result, by its type, against fp64 on the same operands. cuBLASLt takes scales by row and column
for results in bf16 only."""
_CHECKED = 256

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """``[rows, inputs] x [outputs, inputs]`` as an encoder has it."""

    model: str
    name: str
    outputs: int
    inputs: int


def products() -> Iterator[Product]:
    """BERT-base's and BERT-large's."""
    for model in ("base", "large"):
        hidden, wide = SIZES[model]["hidden_size"], SIZES[model]["intermediate_size"]
        yield Product(model, "qkv", 3 * hidden, hidden)
        yield Product(model, "attention output", hidden, hidden)
        yield Product(model, "up", wide, hidden)
        yield Product(model, "down", hidden, wide)


def rounded(x: Tensor, data_type: str) -> Tensor:
    """Operands of a type; integers small enough that sums in fp16 stay finite."""
    if data_type == "int8":
        return (x * 8).round().clamp(-127, 127).to(torch.int8)
    return x.to(torch.float8_e4m3fn if data_type == "fp8" else torch.float16)


def dense(weight: Tensor, data_type: str, rows: int) -> dict[str, Call]:
    """The dense products of a weight in its type, by who computes them."""
    if data_type == "fp16":
        return {"cuBLASLt": lambda x: F.linear(x, weight)}
    found = {"own": _own(weight, data_type, rows)}
    if data_type == "int8":
        return found  # cuBLASLt's has a third to a half of the rate
    one, columns = torch.ones(rows, 1, device="cuda"), torch.ones(1, len(weight), device="cuda")
    options = {"scale_a": one, "scale_b": columns, "out_dtype": torch.bfloat16, "use_fast_accum": True}
    return {**found, "cuBLASLt": lambda x: torch._scaled_mm(x, weight.t(), **options)}


def _own(weight: Tensor, data_type: str, rows: int) -> Call:
    """Our product as the encoder launches it; operands of int8 are shifted by 128 to be unsigned, which the scales take
    back."""
    integers = data_type == "int8"
    zero = 128.0 if integers else 0.0
    scales = torch.tensor([[1.0, -zero]], device="cuda").repeat(rows, 1)
    columns, sums = torch.ones(len(weight), device="cuda"), weight.float().sum(1)
    none, like = torch.empty(0, device="cuda"), torch.empty(1, dtype=torch.float16, device="cuda")
    count = torch.tensor([rows], dtype=torch.int32, device="cuda")
    bits, name = weight.view(torch.uint8), "u8" if integers else "e4m3"

    def call(x: Tensor) -> Tensor:
        fixed = x.view(torch.uint8), scales, bits, columns, sums, none, none, like, count
        return torch.ops.efft_test.eight_bit_rows(*fixed, False, 0.0, name, -1)

    return call


def sparse(weight: Tensor, data_type: str, x: Tensor) -> Call:
    """cuSPARSELt's product, by the algorithm that it finds best for ``x``."""
    packed = torch._cslt_compress(weight)
    options: dict[str, Any] = {"transpose_result": True}
    if data_type != "fp16":
        options["out_dtype"] = torch.float16
    best = torch._cslt_sparse_mm_search(packed, x.t(), **options)
    return lambda x: torch._cslt_sparse_mm(packed, x.t(), **options, alg_id=int(best))


def microseconds(calls: list[Call], x: Tensor) -> tuple[float, bool]:
    """Of one product, weights taking turns; and whether it was captured in a graph."""

    def turns() -> None:
        for call in calls:
            call(x)

    try:
        return interleave({"product": captured(turns)})["product"].median * 1e3 / len(calls), True
    except RuntimeError:  # a library may not allow a capture: launched one by one behind a busy stream
        times = sorted(intervals(turns, 30))
        return times[len(times) // 2] * 1e6 / len(calls), False


def measure(product: Product, rows: int, data_type: str) -> dict[str, Any]:
    """A result row: microseconds of the best dense and of the sparse product, or why one was refused."""
    row: dict[str, Any] = {**vars(product), "rows": rows, "data_type": data_type}
    x = rounded(torch.randn(rows, product.inputs, device="cuda"), data_type)
    makes = [torch.randn(product.outputs, product.inputs, device="cuda") * 0.5 for _ in range(COPIES)]
    weights = [rounded(pruned24(weight), data_type) for weight in makes]
    truth = x[:_CHECKED].double() @ weights[0].double().t()
    best = None
    for name in dense(weights[0], data_type, rows):
        calls = [dense(weight, data_type, rows)[name] for weight in weights]
        # Our own takes operands of int8 as unsigned ones.
        given = (x.to(torch.int16) + 128).to(torch.uint8) if name == "own" and data_type == "int8" else x
        found = _timed(name, calls, given, truth)
        row.setdefault("refused", {}).update(found.pop("refused", {}))
        if found and (best is None or found["us"] < best["us"]):
            best = found | {"by": name}
    if best:
        row |= {"dense_us": best["us"], "dense_by": best["by"], "dense_captured": best["captured"]}
    try:
        calls = [sparse(weight, data_type, x) for weight in weights]
    except (RuntimeError, AttributeError) as error:
        row["refused"]["sparse"] = first_line(error)
        return row
    found = _timed("sparse", calls, x, truth)
    row["refused"].update(found.pop("refused", {}))
    return row | ({"sparse_us": found["us"], "sparse_captured": found["captured"]} if found else {})


def _timed(name: str, calls: list[Call], x: Tensor, truth: Tensor) -> dict[str, Any]:
    """Microseconds, where the result is right; else what was wrong."""
    try:
        result = calls[0](x)[:_CHECKED]
        error = float((result.double() - truth).norm() / truth.norm())
        allowed = _ALLOWED[result.dtype]
        if not error <= allowed:
            return {"refused": {name: f"error {error:.1e} (allowed {allowed:.0e})"}}
        us, graph = microseconds(calls, x)
    except RuntimeError as error:
        return {"refused": {name: first_line(error)}}
    return {"us": us, "captured": graph}


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sparse", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    libraries.load_parts()
    found: list[dict[str, Any]] = []
    settings = {"copies": COPIES, "statistic": "median between events of a busy stream"}
    facts = machine.facts("cuda", machine.threads_available())
    path, lost = None, None
    for data_type, rows in itertools.product(options.types, options.rows):
        try:
            for row in map(partial(measure, rows=rows, data_type=data_type), products()):
                found.append(row)
                print(row, flush=True)
            torch.cuda.empty_cache()
        except RuntimeError as error:  # a kernel of a library took the device along; what was found is kept
            lost = f"{data_type} at {rows} rows, and what would have followed: {first_line(error)}"
            break
        finally:
            path = results.save("sparse", {**facts, "settings": settings, "rows": found}, options.output)
    if path is not None:
        table.print_all(results.load(path))
        print(path)
    if lost is not None:
        print(f"not measured: {lost}", file=sys.stderr)
    return 0 if lost is None else 1


if __name__ == "__main__":
    raise SystemExit(main())
