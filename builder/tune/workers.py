"""Find how an archive is best served on this machine: workers x threads, batch size and batch delay.

Every division of the cores (on GPUs: every number of workers) is measured with as many worker processes
(:mod:`builder.tune.server`), first with a queue that never empties, then with requests that come at random times at a
rate all divisions have in common. The winner goes into the archive's ``model-config.yaml``, the figures into its
``archive.json``.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from builder.errors import BuildError
from builder.inspection import read_facts
from builder.mar import replace_files
from builder.serving import processor
from builder.tune.mix import make_requests
from builder.tune.server import Pool
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.threads import available_cores, gpu_threads

Device = Literal["auto", "cpu", "cuda"]
Goal = Literal["latency", "throughput", "p95"]
GOALS: tuple[Goal, ...] = ("latency", "throughput", "p95")
WITHIN = 100.0
"""Milliseconds of the goal p95, unless told."""
STEPS = 4
"""Rates tried for that goal between a third of a setting's throughput and all of it: the last step is 4 %."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DELAYS = (1, 2, 5)
"""Milliseconds. TorchServe takes 0 for its default, 100."""
LOAD = 0.5
"""The rate at which latencies are compared, as a share of what one worker with all threads can do."""
ROUNDS = 3
TIE = 0.03
"""Relative differences up to this are noise: the setting with less memory or the smaller batch wins."""
BUSY = 0.5
"""Load average per core above which others compute so much that figures say little."""
_SETTINGS = "model-config.yaml"
_MEMORY_PER_WORKER = 3.0
"""Resident bytes of a loading worker, at most, as a multiple of its archive; Python and torch come on top."""
_MEMORY_BASE = 400 << 20
_CONTEXT = 1 << 30
"""Of GPU memory: a context, what libraries keep there, and the workspace of a pass; about."""


@dataclass(frozen=True)
class Setting:
    """One way to serve. ``max_batch_delay`` in milliseconds."""

    workers: int
    threads: int
    batch_size: int
    max_batch_delay: int


@dataclass(frozen=True)
class Figures:
    """A setting's throughput in requests/s when saturated, and latencies in milliseconds at the common rate.

    ``kept``: of the goal p95, the greatest rate tried whose 95th percentile is within the limit; 0 where none is.
    """

    setting: Setting
    throughput: float
    p50: float
    p95: float
    kept: float | None = None

    def row(self) -> dict[str, Any]:
        """Flat and rounded, as the archive keeps it."""
        names = ("throughput", "p50", "p95", *(() if self.kept is None else ("kept",)))
        return {**asdict(self.setting), **{name: round(getattr(self, name), 2) for name in names}}


@dataclass(frozen=True)
class Result:
    """What was measured. ``rate``: the common rate in requests/s; ``placements``: how the chosen workers ran;
    ``unsigned``: whether the archive had a signature, which does not fit what was written."""

    best: Figures
    measured: tuple[Figures, ...]
    rate: float
    placements: tuple[str, ...]
    unsigned: bool = False


def divisions(cores: int, most_workers: int) -> list[tuple[int, int]]:
    """(workers, threads) that use all of the cores, from one worker with all of them on.

    ``most_workers``: what the memory has room for, at least one.
    """
    return [(n, cores // n) for n in range(1, cores + 1) if cores % n == 0 and n <= max(1, most_workers)]


def gpu_divisions(cores: int, gpus: int, most_workers: int) -> list[tuple[int, int]]:
    """(workers, threads) on GPUs: one worker for each of them on, as long as each has a core."""
    counts = [gpus * each for each in (1, 2, 4, 6, 8, 12, 16)]
    fitting = [n for n in counts if n == gpus or n <= min(cores, most_workers)]
    return [(n, gpu_threads(n)) for n in fitting]


def choose(measured: Sequence[Figures], goal: Goal) -> Figures:
    """The best for a goal; of those within TIE of it, the one that comes first in ``measured``."""

    def cost(figures: Figures) -> float:
        if goal == "p95":
            return 1 / max(figures.kept or 0.0, 1e-9)
        return figures.p95 if goal == "latency" else 1 / figures.throughput

    limit = (1 + TIE) * min(map(cost, measured))
    return next(figures for figures in measured if cost(figures) <= limit)


def variants(setting: Setting, goal: Goal) -> Iterator[Setting]:
    """The batching to try for a division, the smallest batch or shortest delay first.

    A delay does not matter to a queue that never empties, a batch's size hardly to one that often is.
    """
    if goal != "latency":
        yield from (replace(setting, batch_size=size) for size in BATCHES)
    else:
        yield replace(setting, batch_size=1, max_batch_delay=1)
        yield from (replace(setting, max_batch_delay=delay) for delay in DELAYS)


def tune(
    archive: Path,
    mix: str,
    goal: Goal,
    seconds: float,
    *,
    pin: bool = True,
    device: Device = "auto",
    within: float = WITHIN,
    report: Callable[[str], None],
) -> Result:
    """Measure an archive and write the best setting for ``goal`` into it.

    ``mix``: a name of :data:`builder.tune.mix.MIXES` or a file; ``seconds`` of each measurement; ``pin``: whether
    workers on a CPU keep to cores of their own; ``device``: auto takes the GPUs where there are some and the archive
    runs on them; ``within``: milliseconds of the goal p95; ``report`` is told each step. Raises BuildError, and then
    the archive is as it was.
    """
    facts = read_facts(archive)
    count = gpus_for(facts, device)
    pin = pin and not count
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        if not (folder / "handler" / "threads.py").exists():
            raise BuildError(f"{archive.name} was built before its workers could be given threads; build it again")
        config = SetupConfig.load(folder / "setup_config.json")
        bodies = make_requests(mix, folder, facts, min(facts.max_positions, config.max_length or facts.max_positions))
        settings = yaml.safe_load((folder / _SETTINGS).read_text(encoding="utf-8")) or {}
        start = Setting(1, 1, settings.get("batchSize", config.batch_size), max(1, settings.get("maxBatchDelay", 1)))
        most = _most_workers(archive.stat().st_size, count)
        busy = os.getloadavg()[0]
        if busy > BUSY * available_cores():
            report(f"although the machine is busy (load average {busy:.1f}): the figures say little")
        bench = _Bench(folder, settings, bodies, seconds, pin, report, count, goal, within)
        cores = available_cores()
        result = bench.run(start, gpu_divisions(cores, count, most) if count else divisions(cores, most))
        content = {**settings, **server_settings(result.best.setting, pin)}
        tuned = {
            "goal": goal, "mix": Path(mix).name, "processor": processor(), "cores": available_cores(),
            "load_average": round(busy, 2), "rate": round(result.rate, 2), "pinned": pin,
            "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
            **({"within": within} if goal == "p95" else {}),
            "best": result.best.row(), "measured": [figures.row() for figures in result.measured],
        }  # fmt: skip
    changed = {_SETTINGS: yaml.safe_dump(content, sort_keys=True).encode()}
    unsigned = replace_files(archive, changed, facts.model_copy(update={"tuned": tuned}))
    return replace(result, unsigned=unsigned)


def _most_workers(size: int, gpus: int) -> int:
    """How many of an archive of so many bytes memory has room for; on GPUs theirs, too."""
    most = int(available_memory() // (_MEMORY_BASE + _MEMORY_PER_WORKER * size))
    return min(most, gpus * int(torch.cuda.mem_get_info()[0] // (_CONTEXT + 2 * size))) if gpus else most


class _Bench:
    """Measures settings of one extracted archive."""

    def __init__(
        self, folder: Path, settings: dict[str, Any], bodies: Sequence[bytes], seconds: float, pin: bool,
        report: Callable[[str], None], gpus: int, goal: Goal, within: float,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._settings = settings
        self._bodies = bodies
        self._seconds = seconds
        self._pin = pin
        self._report = report
        self._gpus = gpus
        self._goal: Goal = goal
        self._within = within
        self._rate = 0.0

    def run(self, start: Setting, divisions: Sequence[tuple[int, int]]) -> Result:
        """Every division with the batching of ``start``, then the batching of the best one."""
        goal = self._goal
        measured = []
        for workers, threads in divisions:
            setting = replace(start, workers=workers, threads=threads)
            with self._pool(setting) as pool:
                measured += self._measure(pool, [setting])
        best = choose(measured, goal)
        with self._pool(best.setting) as pool:
            tried = self._measure(pool, list(variants(best.setting, goal)))
            placements = tuple(pool.placements)
        best = choose(tried, goal)
        return Result(best, (*measured, *tried), self._rate, placements)

    def _pool(self, setting: Setting) -> Pool:
        return Pool(self._folder, {**self._settings, **server_settings(setting, self._pin)}, self._gpus)

    def _measure(self, pool: Pool, settings: Sequence[Setting]) -> list[Figures]:
        """Medians over rounds in which each setting has its turn, so that a disturbance does not hit one only."""
        rounds: list[list[tuple[float, ...]]] = [[] for _ in settings]
        seconds = self._seconds / ROUNDS
        for number in range(ROUNDS):
            for figures, setting in zip(rounds, settings, strict=True):
                if not number:
                    self._report(
                        f"{setting.workers} x {setting.threads}, batch {setting.batch_size}, "
                        f"delay {setting.max_batch_delay} ms"
                    )
                throughput = pool.saturate(self._bodies, setting.batch_size, seconds)
                self._rate = self._rate or LOAD * throughput
                latency = pool.offer(self._bodies, self._rate, setting.batch_size, setting.max_batch_delay, seconds)
                kept = (self._kept(pool, setting, throughput, seconds),) if self._goal == "p95" else ()
                figures.append((throughput, latency.p50, latency.p95, *kept))
        return [
            Figures(setting, *(statistics.median(column) for column in zip(*figures, strict=True)))
            for figures, setting in zip(rounds, settings, strict=True)
        ]

    def _kept(self, pool: Pool, setting: Setting, throughput: float, seconds: float) -> float:
        """The greatest rate tried, by bisection, whose 95th percentile is within the limit; 0 where none is."""
        low, high, best = throughput / 3, throughput, 0.0
        for _ in range(STEPS):
            rate = (low + high) / 2
            latency = pool.offer(self._bodies, rate, setting.batch_size, setting.max_batch_delay, seconds)
            if latency.p95 <= self._within:
                low = best = rate
            else:
                high = rate
        return best


def gpus_for(facts: ArchiveFacts, device: Device) -> int:
    """How many GPUs an archive is tuned on; 0: the CPU. Raises BuildError where "cuda" is asked for and cannot be."""
    if device == "cpu":
        return 0
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    runs = "cuda" in facts.model.devices
    if device == "cuda" and not (count and runs):
        why = "torch sees no GPU here" if runs else f"{facts.name} has no library for one"
        raise BuildError(f"--device cuda cannot be tuned for: {why}")
    return count if runs else 0


def server_settings(setting: Setting, pin: bool) -> dict[str, Any]:
    """The keys of ``model-config.yaml`` that a setting decides."""
    return {
        "minWorkers": setting.workers,
        "maxWorkers": setting.workers,
        "batchSize": setting.batch_size,
        "maxBatchDelay": setting.max_batch_delay,
        "handler": {"threads": setting.threads, "pin": pin},
    }


def available_memory() -> int:
    """Bytes that can be had without swapping, within the container's limit (cgroup v2); generous where unknown."""
    most = 1 << 50
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        most = int(lines["MemAvailable"].split()[0]) << 10
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        return max(0, min(most, int((group / "memory.max").read_text()) - used))
    except (OSError, KeyError, ValueError):  # no such file, or "max": no limit
        return most


def table(result: Result) -> str:
    """The figures as a small table, the chosen setting marked."""
    limited = result.best.kept is not None
    kept = ["kept/s"] if limited else []
    header = ["workers", "threads", "batch", "delay ms", "requests/s", "p50 ms", "p95 ms", *kept, ""]
    rows = [header]
    for figures in result.measured:
        values = [str(value) for value in asdict(figures.setting).values()]
        numbers = (figures.throughput, figures.p50, figures.p95, *([figures.kept or 0.0] if limited else []))
        values += [f"{value:.1f}" for value in numbers]
        rows.append([*values, "<-" if figures is result.best else ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"p50 and p95 at {result.rate:.1f} requests/s"])
