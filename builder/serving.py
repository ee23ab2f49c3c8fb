"""How an archive is served where nobody has said or measured it: workers by the machine's GPUs and cores.

On an H200 with 16 cores a classifier of BERT-base's size got 27,700 requests/s out of four workers with batches of 64,
.81 of what an empty handler gets there, and 34,500 to 35,800 out of eight with batches of 32, .70 of it: the GPU, which
computes for one process at a time, does less with small batches. The four need less of its memory and answer a lone
request .17 ms sooner (docs/benchmarks.md).
"""

from __future__ import annotations

import platform
from pathlib import Path

from handler.config import SetupConfig

MOST = 4
"""Workers of one GPU: each has a context (some hundred MB) and its own copy of the weights."""
GPU_BATCH = 64
"""Requests of a batch on a GPU, of which a large one takes less for each of many short texts than of few."""
_DRIVER = Path("/proc/driver/nvidia/gpus")


def gpus() -> int:
    """How many GPUs this machine has; a CPU build of torch asks the driver's folder."""
    import torch

    if torch.version.cuda is not None:
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return len(list(_DRIVER.glob("*"))) if _DRIVER.is_dir() else 0


def default_workers(on_gpu: bool, cores: int, gpus: int) -> int:
    """One on a CPU, where ``builder tune`` finds better; on GPUs as many for each as half of the cores allow."""
    if not on_gpu or gpus == 0:
        return 1
    return gpus * max(1, min(MOST, cores // (2 * gpus)))


def default_batch(config: SetupConfig, on_gpu: bool, gpus: int) -> int:
    """What the config says, else more on a GPU than its own default, which is a CPU's."""
    stated = "batch_size" in config.model_fields_set
    return config.batch_size if stated or not on_gpu or gpus == 0 else GPU_BATCH


def processor() -> str:
    """The processor's name, with its family and model: virtual machines tend to give several the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = entries.get("model name", platform.machine())
    if "cpu family" not in entries:
        return name
    return f"{name} (family {entries['cpu family']} model {entries.get('model', '?')})"
