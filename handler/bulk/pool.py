"""Workers of this machine: processes that each hold the model, and what to do when one of them dies.

Windows are handed out in order, at most two to a worker so that it never waits for the next, and come back in order. A
worker that dies costs no row: its window is halved and tried again until the row that killed it stands alone, which
then gets an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pyarrow as pa

from handler.archive import ArchiveError
from handler.bulk.errors import BulkError, one_line
from handler.bulk.plan import Plan
from handler.bulk.work import Done, Job, Work
from handler.config import ConfigError
from handler.errors import internal_error

IN_HAND = 2
"""Windows of one worker: the one it scores, and the next."""
AHEAD = 4
"""Windows for each worker that may be done before one that comes first: bounds the memory, and what a kill costs."""
DEATHS = 20
"""In a row, with no window scored between them: then it is not a row's fault. Halving a window takes thirteen."""
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Task:
    """Rows from ``start`` on. ``problem``: not to be scored, but to be written with this error."""

    start: int
    rows: int
    batch: bytes
    problem: str | None = None


@dataclass(slots=True)
class _Worker:
    number: int
    process: Any
    pipe: Any
    tasks: deque[_Task] = field(default_factory=deque)
    ready: bool = False


class Pool:
    """Runs a job's windows on local processes. Use as a context; then :attr:`schema`, then :meth:`run`."""

    def __init__(self, folder: Path, job: Job, plan: Plan) -> None:
        self.schema: pa.Schema | None = None
        """Of a table that is written, known when the first worker is ready."""
        self.threads = plan.threads
        self.on_gpu = plan.gpus[0] is not None
        self._plan = plan
        self._arguments = (str(folder), job, plan.threads, len(plan.gpus))
        self._gpus = plan.gpus
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._again: deque[_Task] = deque()
        self._deaths = 0

    def __enter__(self) -> Pool:
        self._workers = [self._start(number) for number in range(len(self._gpus))]
        try:
            while self.schema is None:
                self._collect({})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def __str__(self) -> str:
        return str(self._plan)

    def run(self, windows: Callable[[], Iterator[tuple[int, pa.RecordBatch]]]) -> Iterator[Done]:
        """Score windows (first row, rows); yields them in order. Raises BulkError."""
        coming = windows()
        done: dict[int, Done] = {}
        following: int | None = None
        ended = False
        while True:
            while following is not None and following in done:
                finished = done.pop(following)
                following = finished.end
                yield finished
            while not ended and len(done) < AHEAD * len(self._workers) and (worker := self._idle()) is not None:
                if self._again:
                    self._give(worker, self._again.popleft())
                    continue
                window = next(coming, None)
                if window is None:
                    ended = True
                    break
                given, batch = window
                following = given if following is None else following
                self._give(worker, _Task(given, batch.num_rows, packed(batch)))
            while self._again and (worker := self._idle()) is not None:
                self._give(worker, self._again.popleft())
            if ended and not self._again and not any(worker.tasks for worker in self._workers):
                return
            self._collect(done)

    def _idle(self) -> _Worker | None:
        """The ready worker with the least in hand."""
        free = [worker for worker in self._workers if worker.ready and len(worker.tasks) < IN_HAND]
        return min(free, key=lambda worker: len(worker.tasks), default=None)

    def _give(self, worker: _Worker, task: _Task) -> None:
        worker.tasks.append(task)
        with contextlib.suppress(OSError):  # it has died: _collect finds that, and gives the task to another
            worker.pipe.send((task.start, task.batch, task.problem))

    def _collect(self, done: dict[int, Done]) -> None:
        """Wait for a worker to say something, or to die. Raises BulkError."""
        for pipe in multiprocessing.connection.wait([worker.pipe for worker in self._workers]):
            worker = next(worker for worker in self._workers if worker.pipe is pipe)
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if kind == "failed":
                raise BulkError(value)
            if kind == "ready":
                worker.ready, self.schema = True, self.schema or value
                continue
            if worker.tasks.popleft().problem is None:
                self._deaths = 0
            done[value.start] = value

    def _bury(self, worker: _Worker) -> None:
        """Put another in a dead worker's place, and its tasks back. Raises BulkError where too many die."""
        worker.process.join()
        code = worker.process.exitcode
        how = f"signal {-code} ({signal.Signals(-code).name})" if code and code < 0 else f"status {code}"
        self._deaths += 1
        if not worker.ready or self._deaths > DEATHS:
            when = "while it scored" if worker.ready else "while it loaded the archive"
            raise BulkError(f"a worker ended with {how} {when}; perhaps memory ran out: try fewer --workers")
        if worker.tasks:
            self._again.extendleft(reversed([*_halves(worker.tasks.popleft(), how), *worker.tasks]))
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = self._start(worker.number)

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, os.getpid(), *self._arguments, self._gpus[number], number)
        process = self._context.Process(target=_serve, args=arguments, daemon=True, name=f"bulk-{number}")
        # Blocked in the child from its first moment: a terminal's Ctrl-C goes to all, but the parent ends the others.
        # The tracker first: to start it multiprocessing blocks the signal, too, and then lets it through.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(number, process, ours)


def _halves(task: _Task, how: str) -> list[_Task]:
    """What to try in place of a task that killed its worker."""
    if task.problem is not None:
        raise BulkError(f"a worker ended with {how} as it wrote row {task.start}; please report this")
    if task.rows == 1:
        return [_Task(task.start, 1, task.batch, f"the worker ended with {how} on this row")]
    batch = unpacked(task.batch)
    middle = task.rows // 2
    halves = (batch.slice(0, middle), batch.slice(middle))
    starts = (task.start, task.start + middle)
    return [_Task(start, half.num_rows, packed(half)) for start, half in zip(starts, halves, strict=True)]


def packed(batch: pa.RecordBatch) -> bytes:
    """A batch in the form in which it is sent: an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def unpacked(payload: bytes) -> pa.RecordBatch:
    """The batch that ``packed`` was given."""
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_next_batch()


def _serve(
    pipe: Any, parent: int, folder: str, job: Job, threads: int, workers: int, gpu: int | None, number: int
) -> None:
    """A worker's life: load, say so, then score what comes until the parent is gone."""
    die_with_parent(parent)
    if number > 0:
        logging.disable(logging.WARNING)  # of the archive and its threads the first says it for all
    try:
        work = _load(folder, job, threads, workers, gpu)
    except (ArchiveError, ConfigError, BulkError) as error:
        pipe.send(("failed", str(error)))
        return
    except Exception as error:
        pipe.send(("failed", f"the archive does not load ({type(error).__name__}: {one_line(error)[:300]})"))
        return
    pipe.send(("ready", work.schema))
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Received at once, so that the parent never waits in a send while it could hand out work to others.
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    while (task := inbox.get()) is not None:
        start, payload, problem = task
        try:
            batch = unpacked(payload)
            done = work(start, batch) if problem is None else work.refuse(start, batch, problem)
        except Exception as error:
            internal_error(error)  # logged; the parent finds the row as it does where a process dies by itself
            os._exit(1)
        if work.lost:  # every later window would fail as well
            os._exit(1)
        try:
            pipe.send(("done", done))
        except OSError:  # the parent has gone
            os._exit(0)


def _load(folder: str, job: Job, threads: int, workers: int, gpu: int | None) -> Work:
    from handler.bulk.scorer import Scorer
    from handler.engine import Engine

    settings = {"maxWorkers": workers, "handler": {"threads": threads, "pin": gpu is None and workers > 1}}
    engine = Engine.load(folder, gpu, settings)
    return Work(job, Scorer.around(engine, job.columns, job.options, job.prefix))


def _receive(pipe: Any, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however it does (prctl(2), Linux)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended meanwhile
        os._exit(0)
