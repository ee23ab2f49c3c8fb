"""What a result must say about where it comes from: device, versions, commit, date."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "torch", "transformers", "openvino", "nncf", "onnxruntime", "ctranslate2", "torchserve", "litserve",
    "numpy", "tokenizers",
)  # fmt: skip
_NO_CODE = (":!docs", ":!benchmarks/results", ":!*.md")
"""What may change without a result's code being another than its commit's."""
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def threads_available() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether torch sees one."""
    return torch.cuda.is_available()


class Watch:
    """How busy other processes keep the machine's cores while something runs here."""

    def __init__(self) -> None:
        self.foreign = self.elapsed = 0.0

    def __enter__(self) -> Watch:
        self.before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        busy, own, now = (after - before for after, before in zip(self._read(), self.before, strict=True))
        self.foreign += max(0.0, busy - own)
        self.elapsed += now

    @property
    def others(self) -> float:
        """Cores that other processes, and other guests of the same host, took on average."""
        return self.foreign / self.elapsed if self.elapsed else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = psutil.cpu_times()._asdict()
        idle = times["idle"] + times.get("iowait", 0.0)
        counted_twice = times.get("guest", 0.0) + times.get("guest_nice", 0.0)
        return sum(times.values()) - idle - counted_twice, sum(os.times()[:4]), time.monotonic()


def facts(device: str, threads: int) -> dict[str, Any]:
    """Device, versions, commit and date, as every result file carries them.

    ``EFFT_COMMIT`` names the commit where an exported tree runs, in which git knows nothing.
    """
    exported = os.environ.get("EFFT_COMMIT")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": exported or _git("rev-parse", "--short=12", "HEAD"),
        "modified": not exported and bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *_NO_CODE)),
        "device": _device(device, threads),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _device(device: str, threads: int) -> dict[str, Any]:
    described = {"kind": device, "threads": threads, **_processor(), "load_average": round(os.getloadavg()[0], 2)}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30)}
    return described


def _processor() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"processor": platform.processor() or platform.machine()}
    entries = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    keys = {key.strip(): value.strip() for key, value in entries.items()}
    flags = keys.get("flags", "").split()
    return {
        "processor": keys.get("model name", platform.machine()),
        "processor_model": f"{keys.get('vendor_id', '')} family {keys.get('cpu family', '')} {keys.get('model', '')}",
        "instruction_sets": [flag for flag in _ISA if flag in flags],
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**versions, "torch": torch.__version__}


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip()


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, as a server's allocator would; False where it is not glibc.

    Otherwise each large buffer is mapped and faulted in anew in every call, in huge pages or not as the kernel happens
    to have them. What a shared host does to memory remains (docs/benchmarks.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
