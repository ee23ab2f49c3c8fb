"""A worker's share of a CPU: how many threads it runs, and on which cores.

``model-config.yaml`` may say ``handler: {threads: N, pin: true}`` (``builder tune`` writes it). A pinned worker holds N
cores to itself. Which ones, the workers settle among themselves: a core is claimed by binding an abstract Unix socket
of its name, which one process at a time can hold and which the kernel takes back when that process ends, however it
ends. So there is nothing to clean up, and a restarted worker finds its predecessor's cores free. TorchServe gives a
worker no number that would do: its socket's is counted over all models and over everything started before.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from handler.config import ConfigError, SetupConfig, first_problem

logger = logging.getLogger(__name__)

_SETTINGS = "model-config.yaml"
_TOPOLOGY = Path("/sys/devices/system/cpu")
_PATIENCE = 10.0
"""Seconds to wait while another worker is choosing its cores."""
_NAMESPACE = "efft"
"""Begins the names of cores; workers that share it share the cores."""
_claims: list[socket.socket] = []
"""What this process holds, for as long as it lives."""


class ThreadSettings(BaseModel):
    """The ``handler`` block of ``model-config.yaml``, and how many workers share the machine."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    threads: int = Field(default=0, ge=0)
    """Of one worker; 0: the cores divided among the workers."""
    pin: bool = False
    """Whether a worker keeps to cores of its own."""
    workers: int = Field(default=1, gt=0)

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None, config: SetupConfig) -> ThreadSettings:
        """From ``model-config.yaml``; what it leaves open is as the setup config says.

        Raises ConfigError in one line.
        """
        settings = settings or {}
        block = settings.get("handler") or {}
        if not isinstance(block, Mapping):
            raise ConfigError("model-config.yaml: handler must be a mapping, such as {threads: 2, pin: true}")
        workers = settings.get("maxWorkers") or settings.get("minWorkers") or config.workers or 1
        try:
            return cls.model_validate({"threads": config.threads, **block, "workers": workers})
        except ValidationError as error:
            raise ConfigError(f"model-config.yaml: handler.{first_problem(error)}") from error


def read_server_settings(archive: Path) -> dict[str, Any]:
    """The ``model-config.yaml`` of an archive, packed or extracted; empty where there is none or nothing to read it
    with.

    Raises ConfigError in one line, and OSError or BadZipFile for a packed archive that cannot be read.
    """
    try:
        import yaml
    except ImportError:
        return {}
    try:
        settings = yaml.safe_load(_server_settings_text(archive))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{_SETTINGS}: {' '.join(str(error).split())}") from error
    return settings if isinstance(settings, dict) else {}


def _server_settings_text(archive: Path) -> str:
    if archive.is_dir():
        try:
            return (archive / _SETTINGS).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise ConfigError(f"{_SETTINGS}: {error}") from error
    with zipfile.ZipFile(archive) as packed:
        return packed.read(_SETTINGS).decode() if _SETTINGS in packed.namelist() else ""


def gpu_threads(workers: int) -> int:
    """Threads of a worker whose model runs on a GPU: they only tokenize, and the front end wants cores, too."""
    return max(1, min(4, available_cores() // (2 * workers)))


@dataclass(frozen=True)
class Placement:
    """Where a worker ended up. ``cores``: those it is pinned to, None where it is not pinned."""

    threads: int
    cores: tuple[int, ...] | None = None
    note: str | None = None
    """Why it is not what was asked for."""

    def __str__(self) -> str:
        """For the log and the doctor."""
        where = "not pinned" if self.cores is None else f"pinned to {', '.join(map(str, self.cores))}"
        reason = f" ({self.note})" if self.note else ""
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, {where}{reason}"


def place(settings: ThreadSettings) -> Placement:
    """Choose the number of threads and, where asked, claim cores and keep this process to them.

    Asked for more than the machine has, the workers divide what there is; where no cores are free a worker runs
    unpinned. Either is said in one line of the log.
    """
    available = available_cores()
    share = max(1, available // settings.workers)
    threads = settings.threads or share
    note = None
    if settings.pin and threads * settings.workers > available:
        note = f"{settings.workers} x {threads} threads asked for, {available} available"
        threads = min(threads, share)
    cores = None
    if settings.pin and hasattr(os, "sched_setaffinity"):
        try:
            cores = claim(core_order(os.sched_getaffinity(0)), threads)
        except OSError as error:
            note = f"cores cannot be claimed here ({error})"
        else:
            note = note if cores else note or f"no {threads} cores are free of other pinned workers"
        if cores:
            keep_to(cores)
    placement = Placement(threads, cores, note)
    logger.log(logging.WARNING if note else logging.INFO, "%s", placement)
    return placement


def available_cores() -> int:
    """Cores this process may use: its affinity, and the container's quota (cgroup v2 cpu.max)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def core_order(cores: Iterable[int], topology: Path = _TOPOLOGY) -> list[int]:
    """Cores in the order in which to hand them out: neighbours of one package together, and the second hardware
    threads of cores only when every core has work, for they share their sibling's arithmetic units."""

    def rank(core: int) -> tuple[int, int, int]:
        folder = topology / f"cpu{core}" / "topology"
        siblings = _ids(folder / "thread_siblings_list") or [core]
        package = _ids(folder / "physical_package_id") or [0]
        return sum(sibling < core for sibling in siblings), package[0], core

    return sorted(cores, key=rank)


def _ids(path: Path) -> list[int]:
    """A list of the kernel's such as ``0-1,8``; empty where it cannot be read."""
    try:
        parts = [part.split("-") for part in path.read_text().strip().split(",")]
        return [number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)]
    except (OSError, ValueError):
        return []


def claim(order: Iterable[int], number: int) -> tuple[int, ...] | None:
    """Claim the first ``number`` free cores of ``order`` until this process ends; None, and nothing held, where
    fewer are free."""
    held: dict[int, socket.socket] = {}
    deadline = time.monotonic() + _PATIENCE
    # One worker chooses at a time: two that each held half of what both need would both go without.
    while (turn := _bind("choosing")) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        for core in order:
            if len(held) == number:
                break
            lock = _bind(f"core-{core}")
            if lock is not None:
                held[core] = lock
    finally:
        if turn is not None:
            turn.close()
    if len(held) < number:
        for lock in held.values():
            lock.close()
        return None
    _claims.extend(held.values())
    return tuple(sorted(held))


def _bind(name: str) -> socket.socket | None:
    """A socket of this name in the kernel's abstract namespace (unix(7)); None where a process has it.

    Raises OSError where the system does not let this process have one at all.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(f"\0{_NAMESPACE}-{name}")
    except OSError as error:
        lock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return lock


def keep_to(cores: Iterable[int]) -> None:
    """Restrict every thread of this process, and so every one to come, to ``cores``.

    Libraries have started threads by now (numpy's BLAS as it is imported), which would keep their old freedom.
    """
    allowed = set(cores)
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), allowed)
        except ProcessLookupError:
            continue  # it has ended meanwhile
