"""A server in miniature: worker processes that hold an archive's predictor, behind a queue like TorchServe's.

What it leaves out is HTTP and Java, so it needs neither ports nor a server; what it keeps is what a setting of workers
and threads decides: processes that compute at the same time on the same machine, and requests that wait for each other.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from builder.errors import BuildError

FEWEST = 20
"""Requests of an open loop: fewer say nothing of a 95th percentile."""
_WARM_UP = 0.2
"""Share of the time of an open loop that is not counted."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds from when a request was due until its answer was there."""

    p50: float
    p95: float


class Pool:
    """Workers with an archive's predictor; a context manager.

    ``settings`` are those of ``model-config.yaml``. ``gpus``: how many the workers are dealt out to, one after the
    other as TorchServe does it; 0: they run on the CPU. Entering raises BuildError where a worker cannot load.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], gpus: int = 0) -> None:
        self._folder = folder
        self._settings = dict(settings)
        self._gpus = gpus
        self._ends: list[Connection] = []
        self._processes: list[Any] = []
        self.placements: list[str] = []

    def __enter__(self) -> Pool:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads half
        for number in range(self._settings["maxWorkers"]):
            own, other = context.Pipe()
            gpu = number % self._gpus if self._gpus else None
            process = context.Process(target=_work, args=(other, self._folder, self._settings, gpu), daemon=True)
            process.start()
            other.close()
            self._ends.append(own)
            self._processes.append(process)
        try:
            self.placements = [_placement(end) for end in self._ends]
        except BuildError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()

    def saturate(self, bodies: Sequence[bytes], batch_size: int, seconds: float) -> float:
        """Requests per second with a queue that never empties."""
        numbers = count()
        rates: list[float] = []

        def drive(end: Connection) -> None:
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < seconds or not done:
                _ask(end, [bodies[next(numbers) % len(bodies)] for _ in range(batch_size)])
                done += batch_size
            rates.append(done / (time.perf_counter() - start))

        self._on_every_worker(drive)
        return sum(rates)

    def offer(
        self, bodies: Sequence[bytes], rate: float, batch_size: int, max_batch_delay: int, seconds: float
    ) -> Latency:
        """``rate`` requests per second at random times (a Poisson process) whatever the workers do.

        For ``seconds``, or for as long as it takes to offer FEWEST of them.
        """
        seconds = max(seconds, FEWEST / rate)
        generator = random.Random(0)
        arrivals = sorted(generator.uniform(0, seconds) for _ in range(round(rate * seconds)))
        waiting: queue.Queue[tuple[float, bytes] | None] = queue.Queue()
        collecting = threading.Lock()
        latencies: list[tuple[float, float]] = []
        start = time.perf_counter()

        def drive(end: Connection) -> None:
            while True:
                with collecting:
                    batch = collect(waiting, batch_size, max_batch_delay)
                if not batch:
                    return
                _ask(end, [body for _, body in batch])
                now = time.perf_counter() - start
                latencies.extend((due, now - due) for due, _ in batch)

        def arrive() -> None:
            for number, due in enumerate(arrivals):
                time.sleep(max(0.0, start + due - time.perf_counter()))
                waiting.put((due, bodies[number % len(bodies)]))
            waiting.put(None)

        source = threading.Thread(target=arrive)
        source.start()
        self._on_every_worker(drive)
        source.join()
        counted = [1e3 * latency for due, latency in latencies if due >= _WARM_UP * seconds]
        p50, p95 = np.percentile(counted, (50, 95))
        return Latency(float(p50), float(p95))

    def _on_every_worker(self, drive: Callable[[Connection], None]) -> None:
        failures: list[BaseException] = []

        def guarded(end: Connection) -> None:
            try:
                drive(end)
            except (BuildError, OSError, EOFError) as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(end,)) for end in self._ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            reason = str(failures[0]) or "it ended"
            raise BuildError(f"a worker failed while it was measured: {reason}") from failures[0]


def collect(waiting: queue.Queue[Any], batch_size: int, max_batch_delay: int) -> list[Any]:
    """One batch as TorchServe collects it; None in the queue ends it, and stays there for the other workers.

    TorchServe's ``Model.pollBatch``: wait for the first request, then for each further one no longer than what is
    left of the delay in whole milliseconds, at least 1.
    """
    batch = []
    delay = max_batch_delay
    item = waiting.get()
    begin = _milliseconds()
    while item is not None:
        batch.append(item)
        if len(batch) == batch_size or (len(batch) > 1 and delay <= 0):
            return batch
        try:
            item = waiting.get(timeout=delay / 1e3)
        except queue.Empty:
            return batch
        now = _milliseconds()
        delay -= now - begin
        begin = now
    waiting.put(None)
    return batch


def _milliseconds() -> int:
    return time.monotonic_ns() // 1_000_000


def _placement(end: Connection) -> str:
    try:
        ready, text = end.recv()
    except EOFError:
        ready, text = False, "it ended without a word"
    if not ready:
        raise BuildError(f"a worker cannot load the archive: {text}")
    return text


def _ask(end: Connection, bodies: list[bytes]) -> None:
    end.send(bodies)
    problem = end.recv()
    if problem is not None:
        raise BuildError(problem)


def _work(end: Connection, folder: Path, settings: Mapping[str, Any], gpu: int | None) -> None:
    """A worker process: load as TorchServe's does, then answer batches until the other end closes."""
    from handler import quick_json
    from handler.predictor import Predictor

    try:
        predictor = Predictor.load(folder, gpu, settings)
    except Exception as error:
        end.send((False, " ".join(str(error).split()) or type(error).__name__))
        return
    end.send((True, str(predictor.placement)))
    while True:
        try:
            bodies = end.recv()
        except EOFError:
            return
        replies = predictor.predict([{"body": body} for body in bodies], arrays=True)
        for reply in replies:
            quick_json.dumps(reply.payload)
        refused = [json.dumps(reply.payload) for reply in replies if reply.status != 200]
        end.send(f"a request was refused: {refused[0]}" if refused else None)
