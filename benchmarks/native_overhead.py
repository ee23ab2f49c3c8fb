"""What a call costs beside the arithmetic: the C library against the torch operator, in turns, on one thread.

``python -m benchmarks.native_overhead FOLDER`` takes a folder of ``builder export-native``. Both are called from
Python, so that ctypes' own microsecond counts against the C library. Two encoders: the folder's, and one of
one layer of 32, whose call is little else than overhead. One sequence of 16 tokens, the first token's state.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from builder import ops
from builder.native.binding import OUTPUTS, Model
from builder.native.library import compile_native

TOKENS = 16


def smallest(folder: Path, target: Path) -> Path:
    """A folder like the given one, of an encoder that has next to nothing to do."""
    shutil.copytree(folder, target)
    spec = json.loads((folder / "spec.json").read_text())
    spec |= {"encoder": "encoder/1 layers=1 hidden=32 heads=1 intermediate=32", "head": None, "max_tokens": TOKENS}
    elements = {"matrix": 0, "vector": 0}
    for line in torch.ops.efft.slots(spec["encoder"]).splitlines():
        _, kind, rows, columns = line.split()[:4]
        if kind in elements:
            elements[kind] += int(rows) * int(columns)
    tables = {name: torch.randn(32, 32) for name in ("word", "position", "segment")}
    arenas = {"matrices": torch.randn(elements["matrix"]), "vectors": torch.randn(elements["vector"])}
    save_file({**tables, **arenas}, target / "weights.safetensors")
    (target / "spec.json").write_text(json.dumps(spec))
    return target


def native_call(model: Model) -> Callable[[], np.ndarray]:
    """A call with everything that a C program would have at hand made beforehand."""
    ids = (ctypes.c_int64 * TOKENS)(*range(5, 5 + TOKENS))
    starts = (ctypes.c_int32 * 2)(0, TOKENS)
    out = np.zeros((1, model.info.hidden), np.float32)
    arguments = (
        model.session, ctypes.addressof(ids), None, ctypes.addressof(starts), 1, OUTPUTS["first"],
        out.ctypes.data, out.size,
    )  # fmt: skip
    encode = model.library.efft_encode

    def call(kept: object = (ids, starts)) -> np.ndarray:
        if encode(*arguments):
            raise RuntimeError(model.library.efft_last_error().decode())
        return out

    return call


def operator_call(folder: Path) -> Callable[[], np.ndarray]:
    """The operator on prepared weights."""
    spec = json.loads((folder / "spec.json").read_text())["encoder"]
    tensors = load_file(folder / "weights.safetensors")
    names = ("word", "position", "segment", "matrices", "vectors")
    weights = torch.ops.efft.prepare_weights([tensors[name] for name in names], spec)
    ids = torch.arange(5, 5 + TOKENS)[None]
    segments, mask = torch.zeros_like(ids), torch.ones_like(ids)
    encode = torch.ops.efft.encode.default
    return lambda: encode(ids, segments, mask, weights, spec, "first")


def compare(folder: Path, rounds: int) -> tuple[float, float, float]:
    """Medians in microseconds: the C library's, the operator's, and of the rounds' differences."""
    with Model(compile_native(), folder, threads=1) as model, torch.inference_mode():
        native, operator = native_call(model), operator_call(folder)
        np.testing.assert_array_equal(native(), np.asarray(operator()))
        times: list[tuple[float, float]] = []
        for turn in range(rounds + 20):
            spent = {}
            for call in (native, operator) if turn % 2 else (operator, native):
                begin = time.perf_counter_ns()
                call()
                spent[call] = (time.perf_counter_ns() - begin) / 1e3
            times.append((spent[native], spent[operator]))
    warm = times[20:]
    ours, theirs = zip(*warm, strict=True)
    return statistics.median(ours), statistics.median(theirs), statistics.median(a - b for a, b in warm)


def main() -> None:
    """Print both comparisons."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    ops.ensure_loaded()
    with tempfile.TemporaryDirectory() as scratch:
        small = smallest(folder, Path(scratch) / "small")
        for name, path, rounds in (("whole", folder, 400), ("smallest", small, 20000)):
            ours, theirs, apart = compare(path, rounds)
            print(f"{name}: C library {ours:.1f} us, operator {theirs:.1f} us, difference {apart:+.1f} us")


if __name__ == "__main__":
    main()
