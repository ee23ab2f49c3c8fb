"""Time the CPU encoder against other engines on the same weights and the same ragged batches.

Engines are timed in turns, so that a change of the machine's mood meets all of them; medians are reported, and each
engine's result is first checked against plain PyTorch in fp32. With one thread ``--clock cpu`` counts processor time,
which other processes on the machine disturb little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import cpu_peers
from benchmarks.cpu_models import MODELS, WORKLOADS, Case, operations

MIN_ROUNDS, MAX_ROUNDS = 5, 60


def main() -> None:
    """Parse the command line, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--types", nargs="+", choices=["fp32", "bf16", "int8"], default=["fp32", "bf16", "int8"])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--engines", nargs="+", default=["efft", "packed", "openvino"], choices=cpu_peers.ENGINES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="per workload and type, all engines together")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, help="append one JSON line per figure")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu adds up all threads' time; it means something with --threads 1 only")
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    with torch.inference_mode():
        for model in arguments.models:
            for dtype in arguments.types:
                measure_all(arguments, model, dtype, clock)


def measure_all(arguments: argparse.Namespace, model: str, dtype: str, clock: Callable[[], float]) -> None:
    """All workloads of one model and type."""
    case = Case.random(model)
    engines = {name: cpu_peers.build(name, case, dtype, arguments.threads) for name in arguments.engines}
    for workload in arguments.workloads:
        lengths = WORKLOADS[workload]
        batch = case.batch(lengths)
        truth = case.plain(*batch)
        calls: dict[str, Callable[[], Tensor]] = {}
        for name, engine in engines.items():
            for variant, call in engine.variants(batch, lengths).items():
                calls[f"{name}{variant}"] = call
        cosines = {name: worst_cosine(call(), truth, batch[2]) for name, call in calls.items()}
        figures = interleaved(calls, arguments.seconds, clock)
        for name, seconds in figures.items():
            row = {
                "model": model, "type": dtype, "workload": workload, "threads": arguments.threads,
                "clock": arguments.clock, "engine": name, "ms": round(seconds * 1e3, 3),
                "gops": round(operations(case.shape, lengths) / seconds / 1e9, 1), "cosine": round(cosines[name], 4),
            }  # fmt: skip
            if arguments.out:
                with arguments.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
        best = min((s for n, s in figures.items() if not n.startswith("efft")), default=float("nan"))
        cells = "  ".join(f"{n} {s * 1e3:.2f} ({cosines[n]:.3f})" for n, s in figures.items())
        print(f"{model} {dtype} {workload}: {cells}  ratio {figures['efft'] / best:.2f}", flush=True)


def interleaved(calls: dict[str, Callable[[], Tensor]], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each call, in rounds over all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    rounds = 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() - start < seconds):
        for name, call in calls.items():
            before = clock()
            call()
            times[name].append(clock() - before)
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def worst_cosine(actual: Tensor, truth: Tensor, mask: Tensor) -> float:
    """The worst valid token's."""
    return torch.nn.functional.cosine_similarity(actual.float(), truth, dim=-1)[mask == 1].min().item()


if __name__ == "__main__":
    main()
