"""Every workload: ours and its peers taking turns, beside the floor of the same process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.floor import Ceilings
from benchmarks.gpu import models
from benchmarks.gpu.timing import Call, captured, interleave
from benchmarks.gpu.workloads import LENGTHS, SIZES, batch, columns, squad_lengths
from benchmarks.timing import Timing

LARGE = ("1x128", "8x384", "32x384")
COMPILED = ("1x32", "8x128", "32x384")
"""Where torch.compile is measured: each shape costs it a compilation of many seconds."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}


def measure(
    size_name: str, data_type: str, workloads: Sequence[str], peers: Sequence[str], ceilings: Ceilings
) -> list[dict[str, object]]:
    """A row for each workload and engine: ours (``thsext``) and ``peers`` (packed, ths, compile), beside the floor.

    ``data_type``: fp16, bf16, fp32, or tf32 for fp32 whose products may round their inputs to tf32.
    """
    size, dtype = SIZES[size_name], DTYPES[data_type]
    torch.backends.cuda.matmul.allow_tf32 = data_type == "tf32"
    encoders = models.build(size, dtype)
    rows = []
    # Compiled shapes first: torch 2.11's graph of 32x384 faults once five other shapes of the other peers have run
    # before it, with or without ours in the process.
    order = sorted(workloads, key=lambda workload: "compile" in peers and workload not in COMPILED)
    for workload in order:
        lengths = LENGTHS[workload]
        ids, mask = batch(lengths, columns(workload))
        calls: dict[str, Call] = {"thsext": models.ours(encoders, ids, mask)}
        for peer in peers:
            if peer == "compile" and workload not in COMPILED:
                continue
            calls[peer] = PEERS[peer](encoders, ids, mask)
        times = interleave(calls)
        arithmetic = size.operations(lengths) / ceilings.operations[data_type] * 1e3
        weights = size.parameters * dtype.itemsize / ceilings.bytes * 1e3
        floor = max(arithmetic, weights)
        shared = {
            "model": size_name,
            "data_type": data_type,
            "workload": workload,
            "lengths": "rand_r",
            "tokens": sum(lengths),
            "padding_share": 1 - sum(lengths) / mask.numel(),
        }
        for engine, timing in times.items():
            rows.append({**shared, "engine": engine, "refused": None, **_figures(timing, floor)})
        print(_line(shared, floor, {engine: timing.median for engine, timing in times.items()}), flush=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    return sorted(rows, key=lambda row: workloads.index(str(row["workload"])))


def over(size_name: str, data_type: str, other: str, workloads: Sequence[str]) -> dict[str, float]:
    """By workload, our time in ``data_type`` as a multiple of that in ``other``: of two encoders taking turns, since
    each alone heats the device in its own way."""
    pair = {name: models.build(SIZES[size_name], DTYPES[name]) for name in (data_type, other)}
    ratios = {}
    for workload in workloads:
        ids, mask = batch(LENGTHS[workload], columns(workload))
        times = interleave({name: models.ours(encoders, ids, mask) for name, encoders in pair.items()})
        ratios[workload] = times[data_type].median / times[other].median
        print(f"{size_name:5} {workload:7} {data_type} over {other}: {ratios[workload]:.3f}", flush=True)
    return ratios


PEERS: dict[str, Callable[[models.Encoders, Tensor, Tensor], Call]] = {
    "packed": lambda encoders, ids, mask: captured(models.packed_torch(encoders, ids, mask)),
    "ths": models.torchscript,
    "compile": models.compiled,
}


def _figures(timing: Timing, floor: float) -> dict[str, float]:
    return {
        "median_ms": timing.median,
        "lower_ms": timing.lower,
        "upper_ms": timing.upper,
        "rounds": timing.rounds,
        "floor_ms": floor,
        "floor_ratio": timing.median / floor,
    }


def _line(row: dict[str, object], floor: float, medians: dict[str, float]) -> str:
    """One workload as text: milliseconds, and ours against the floor and each peer."""
    ours = medians["thsext"]
    text = f"{row['model']:5} {row['data_type']:4} {row['workload']:7} {row['tokens']:5} tokens  floor {floor:7.3f}"
    text += f"  thsext {ours:7.3f} ({ours / floor:4.2f} x floor)"
    peers = {name: median for name, median in medians.items() if name != "thsext"}
    return text + "".join(f"  {name} {median:7.3f} ({median / ours:4.2f} x)" for name, median in peers.items())


def stream(dtype: torch.dtype, token_budget: int = 16384) -> dict[str, float]:
    """Sequences a second of BERT-large over the SQuAD-like stream, sorted by length, every result kept."""
    encoders = models.build(SIZES["large"], dtype)
    batches: list[list[int]] = []
    current: list[int] = []
    for length in sorted(squad_lengths()):
        if sum(current) + length > token_budget:
            batches.append(current)
            current = []
        current.append(length)
    batches.append(current)
    calls = [models.ours(encoders, *batch(lengths)) for lengths in batches]
    for _ in range(2):
        kept = [call() for call in calls]
        del kept
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    results = [call() for call in calls]
    stop.record()
    torch.cuda.synchronize()
    seconds = start.elapsed_time(stop) / 1e3
    del results
    return {"seconds": seconds, "sequences_per_second": sum(map(len, batches)) / seconds}
