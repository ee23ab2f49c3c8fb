"""How many workers score, each with what: threads of cores of its own, or a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from handler.bulk.errors import BulkError
from handler.config import SetupConfig
from handler.engine import choose_gpu
from handler.threads import available_cores

WORKERS_PER_GPU = 2
"""One tokenizes while the other computes."""
BASE_MEMORY = 0.6e9
"""Bytes of a process that has imported torch, beside its weights."""
WEIGHTS = 2.0
"""Memory of an archive's weights at most, in sizes of its files: loaded, and prepared for the device beside that."""
ROWS_PER_TOKEN = 8
"""Rows of a window by tokens of a pass: short texts fill some hundred passes from one window, which sorts them well."""
BYTES_PER_TOKEN = 512
"""Of texts in a window. A slow model then takes minutes for a window, not hours."""


@dataclass(frozen=True)
class Plan:
    """``gpus``: each worker's GPU, None for the CPU; their number is that of the workers. ``threads``: of one."""

    gpus: tuple[int | None, ...]
    threads: int

    def __str__(self) -> str:
        """For the user."""
        workers = f"{len(self.gpus)} worker{'s' if len(self.gpus) > 1 else ''}"
        if self.gpus[0] is None:
            return f"{workers} with {self.threads} thread{'s' if self.threads > 1 else ''} each"
        return f"{workers} on {len(set(self.gpus))} GPU{'s' if len(set(self.gpus)) > 1 else ''}"


def make_plan(folder: Path, workers: int | None, threads: int | None, device: str | None) -> Plan:
    """For an unpacked archive on this machine; None: as the machine has it.

    All GPUs where the archive runs on them, each with WORKERS_PER_GPU workers. Otherwise a worker with one thread for
    each core (products of few rows do not divide well), fewer with more threads where the weights would not fit into
    memory so often. Raises BulkError, ArchiveError or ConfigError.
    """
    gpu = choose_gpu(folder, device)
    cores = available_cores()
    if gpu is None:
        if workers is None:
            workers = max(1, min(cores // (threads or 1), _fitting(folder)))
        gpus: tuple[int | None, ...] = (None,) * workers
        threads = threads or max(1, cores // workers)
    else:
        every = [gpu] if device is not None and ":" in device else list(range(torch.cuda.device_count()))
        workers = workers or WORKERS_PER_GPU * len(every)
        gpus = tuple(every[number % len(every)] for number in range(workers))
        threads = threads or max(1, cores // workers)
    return Plan(gpus, threads)


def window_of(folder: Path, threads: int, on_gpu: bool) -> tuple[int, int]:
    """Most rows of a window and most bytes of their texts, from the tokens of one pass."""
    config = SetupConfig.load(folder / "setup_config.json")
    tokens = config.max_batch_tokens or (16384 if on_gpu else 512 * threads)
    return ROWS_PER_TOKEN * tokens, BYTES_PER_TOKEN * tokens


def _fitting(folder: Path) -> int:
    """Workers that this machine's free memory has room for. Raises BulkError where not even one is."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    needed = BASE_MEMORY + WEIGHTS * size
    free = free_memory()
    if free is None:
        return 1 << 16
    if free < BASE_MEMORY + size:
        raise BulkError(f"a worker needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
    return max(1, int(free / needed))


def free_memory() -> float | None:
    """Bytes: the kernel's estimate, or what the container may still take (cgroup v2); None where neither is told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0.0, free)
