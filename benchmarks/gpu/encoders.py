"""Every workload: ours and its peers, all outputs checked, taking turns, beside the floor of the same process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.floor import Ceilings
from benchmarks.gpu.engines import Engines
from benchmarks.measuring import Group
from benchmarks.ratios import over, over_floor
from benchmarks.table import OURS
from benchmarks.tf32 import products_in
from benchmarks.timing import Call, interleave, once
from benchmarks.workloads import Batch, Workload, make_batch, make_workload, published
from builder.families import spec_of

WORKLOADS = tuple(published("gpu"))
LARGE = ("1x128", "8x384", "32x384")
"""Workloads of BERT-large."""
PEERS = ("packed", "ths", "compile")
COMPILED = ("32x384", "8x128", "1x32")
"""Where torch.compile is measured, in this order and before all other workloads. Each shape costs it a compilation of
many seconds; and torch 2.11's graph of 32x384 faulted once five other shapes of the other peers had run before it, with
or without ours in the process."""
ROUNDS = 5
STREAM = "10833x384"
"""As many sequences as SQuAD v1.1's validation set has."""


def measure(
    engines: Engines, model: str, data_type: str, sizes: Sequence[str], peers: Sequence[str], ceilings: Ceilings
) -> list[dict[str, Any]]:
    """A row for each workload and engine: ours and ``peers``, as far as they can run, beside the floor.

    ``data_type``: fp16, bf16, fp32, or tf32. Where an output is not right the row says why and has no time.
    """
    names = [OURS, *peers]
    rows: list[dict[str, Any]] = []
    with products_in(data_type):
        group = engines.group(model, data_type, names)
        for size in in_order(sizes, peers):
            asked = [name for name in names if name != "compile" or size in COMPILED]
            rows += _measure(engines, group, make_workload(size, "rand_r"), asked, ceilings)
    return sorted(rows, key=lambda row: sizes.index(row["workload"]))


def in_order(sizes: Sequence[str], peers: Sequence[str]) -> list[str]:
    """The workloads as they are measured, see COMPILED."""
    first = [size for size in COMPILED if size in sizes and "compile" in peers]
    return [*first, *(size for size in sizes if size not in first)]


def type_ratios(engines: Engines, model: str, data_type: str, other: str, sizes: Sequence[str]) -> dict[str, float]:
    """By workload, our time in ``data_type`` as a multiple of that in ``other``: of two encoders taking turns, since
    each alone heats the device in its own way. Only where both are right."""
    groups = {name: engines.group(model, name, [OURS]) for name in (data_type, other)}
    ratios = {}
    for size in sizes:
        calls: dict[str, Call] = {}
        for name, group in groups.items():
            _, right = engines.check(group, _batch(group, make_workload(size, "rand_r")), [OURS])
            if OURS in right:
                calls[name] = right[OURS]
        if len(calls) == len(groups):
            times = interleave(calls)
            ratios[size] = times[data_type].median / times[other].median
            print(f"{model:5} {size:7} {data_type} over {other}: {ratios[size]:.3f}", flush=True)
    return ratios


def stream(engines: Engines, data_type: str, token_budget: int = 16384) -> dict[str, float]:
    """Sequences a second of BERT-large over a SQuAD-like stream, sorted by length, every result kept.

    Checked are the batches of the shortest, the middle and the longest sequences, since float64 takes its time; the
    result is empty where one is not right.
    """
    group = engines.group("large", data_type, [OURS])
    batches = [_batch(group, workload) for workload in stream_workloads(token_budget)]
    checked = {index: batches[index] for index in (0, len(batches) // 2, len(batches) - 1)}
    found = {index: engines.check(group, batch, [OURS])[1].get(OURS) for index, batch in checked.items()}
    if None in found.values():
        return {}
    calls = [found.get(index) or group.engines[OURS].bind(batch) for index, batch in enumerate(batches)]
    for _ in range(2):
        kept = [call() for call in calls]
        del kept
    taken = once(lambda: [call() for call in calls], engines.setting.synchronize)
    return {"seconds": taken, "sequences_per_second": sum(b.workload.batch for b in batches) / taken}


def stream_workloads(token_budget: int) -> list[Workload]:
    """The stream's sequences sorted by length, in batches of at most so many valid tokens."""
    batches: list[list[int]] = [[]]
    for length in sorted(make_workload(STREAM, "squad").lengths):
        if sum(batches[-1]) + length > token_budget:
            batches.append([])
        batches[-1].append(length)
    return [Workload(tuple(lengths), max(lengths), "squad") for lengths in batches]


def _measure(
    engines: Engines, group: Group, workload: Workload, names: Sequence[str], ceilings: Ceilings
) -> list[dict[str, Any]]:
    group.prepare(workload, math.inf, [name for name in names if name in group.engines])
    group.measure(workload, 0.0, math.inf, least=ROUNDS)
    floor = ceilings.floor_ms(spec_of(group.source.config), workload, group.data_type)
    rows = [{**row, "floor_ms": floor} for row in group.rows_of(workload)]
    group.finish(workload)
    engines.judge(group, workload, names, {row["engine"]: row["refused"] for row in rows})
    if rows:
        print(_line(rows), flush=True)
    return rows


def _batch(group: Group, workload: Workload) -> Batch:
    return make_batch(workload, group.source.config.vocab_size, group.setting.device)


def _line(rows: Sequence[dict[str, Any]]) -> str:
    """One workload as text: milliseconds, ours against the floor and each peer against ours, errors in brackets."""
    first = rows[0]
    text = f"{first['model']:5} {first['data_type']:4} {first['workload']:7} {first['tokens']:5} tokens"
    text += f"  floor {first['floor_ms'] or 0:7.3f}"
    ours = next((row for row in rows if row["engine"] == OURS), None)
    for row in rows:
        if "median_ms" not in row:
            text += f"  {row['engine']} refused: {row['refused']}"
            continue
        ratio = over_floor(row) if row is ours else over(row, ours)
        text += f"  {row['engine']} {row['median_ms']:7.3f} ({ratio or 0:4.2f} x) [{row['error']:.1e}]"
    return text
