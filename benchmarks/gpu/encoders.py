"""Every workload: ours and its peers taking turns, beside the floor of the same process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.gpu import models
from benchmarks.gpu.timing import Call, captured, medians
from benchmarks.gpu.workloads import LENGTHS, SIZES, batch, columns, squad_lengths

LARGE = ("1x128", "8x384", "32x384")


def measure(
    size_name: str, dtype: torch.dtype, workloads: Sequence[str], peers: Sequence[str], rates: dict[str, float]
) -> list[dict[str, object]]:
    """One row a workload: milliseconds of ``efft`` and each of ``peers`` (packed, torchscript, compile), the floor."""
    size = SIZES[size_name]
    encoders = models.build(size, dtype)
    rows = []
    for workload in workloads:
        lengths = LENGTHS[workload]
        ids, mask = batch(lengths, columns(workload))
        calls: dict[str, Call] = {"efft": models.ours(encoders, ids, mask)}
        if "packed" in peers:
            calls["packed"] = captured(models.packed_torch(encoders, ids, mask))
        if "torchscript" in peers:
            calls["torchscript"] = models.torchscript(encoders, ids, mask)
        if "compile" in peers:
            calls["compile"] = models.compiled(encoders, ids, mask)
        times = medians(calls)
        arithmetic = size.operations(lengths) / rates["matrix"] * 1e3
        weights = size.parameters * dtype.itemsize / rates["copy"] * 1e3
        row: dict[str, object] = {"model": size_name, "type": str(dtype).removeprefix("torch."), "workload": workload}
        row |= {"tokens": sum(lengths), "floor": max(arithmetic, weights)} | times
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, object]) -> str:
    """One row as text: milliseconds, and ours against the floor and each peer."""
    ours, floor = float(str(row["efft"])), float(str(row["floor"]))
    text = f"{row['model']:5} {row['type']:8} {row['workload']:7} {row['tokens']:5} tokens  floor {floor:7.3f}"
    text += f"  efft {ours:7.3f} ({ours / floor:4.2f} x floor)"
    for name in ("packed", "torchscript", "compile"):
        if name in row:
            peer = float(str(row[name]))
            text += f"  {name} {peer:7.3f} ({peer / ours:4.2f} x)"
    return text


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
    kept = [call() for call in calls]
    stop.record()
    torch.cuda.synchronize()
    seconds = start.elapsed_time(stop) / 1e3
    assert len(kept) == len(batches)
    return {"seconds": seconds, "sequences_per_second": sum(map(len, batches)) / seconds}
