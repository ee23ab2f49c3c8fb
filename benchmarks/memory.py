"""Peak memory of one engine, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

# Imported once, by the server that the processes are forked from.
_PRELOAD = ["benchmarks.memory", "benchmarks.engines", "benchmarks.models", "transformers.models.bert.modeling_bert"]


def peak_mib(engine: str, model: str, data_type: str, device: str, threads: int, workload: str, lengths: str) -> float:
    """Peak memory in MiB while an engine, already built, runs a workload.

    Resident memory of the whole process on a CPU (Python and torch's code included); on a GPU what torch allocated.
    Raises whatever building the engine raises.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measure, engine, model, data_type, device, threads, workload, lengths).result()


def _measure(engine: str, model: str, data_type: str, device: str, threads: int, workload: str, lengths: str) -> float:
    from benchmarks.engines import ENGINES
    from benchmarks.models import load_source
    from benchmarks.workloads import make_batch, make_workload

    torch.set_num_threads(threads)
    source = load_source(model)
    batch = make_batch(make_workload(workload, lengths), source.config.vocab_size, device)
    built = ENGINES[engine](source, data_type, device, threads)
    del source
    call: Any = built.bind(batch)
    _forget()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        call()
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _high_water_mark()


def _forget() -> None:
    """Give freed memory back and start the kernel's high-water mark anew: building is not what is measured."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _high_water_mark() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
