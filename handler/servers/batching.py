"""Dynamic batching by tokens: inputs of many clients run together, and nobody waits for a batch to fill.

Two threads: one tokenizes what has come, the other runs the next pass of what is tokenized, as much as the engine's
token budget holds, whatever its number of rows; the packer sorts it by length. While a pass runs the next one gathers,
so that passes grow with the load by themselves.

Order: by rounds. A call's first budget of tokens stands in the round of the pass that runs as it arrives, each further
budget one round later; within a round whoever came first is first. So a long list is spread over many passes and a
short request need not wait for its end, nobody starves, and calls that fit one pass are served in the order they came.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from handler.engine import Engine
from handler.errors import RequestError, internal_error
from handler.packing import Arrays
from handler.schemas import Request
from handler.tasks.base import Job
from handler.tokenizer import Sequence
from handler.wire.base import Outcome
from handler.wire.token_ids import TokenIdsRequest

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Inputs that are tokenized in one go, at least one call's: the first of many need not wait for the last."""
Observe = Callable[[str, float], None]
"""Told a stage's name and its seconds."""


class Turns:
    """A lock whose waiters come first in, first out: of several models on one device none keeps the others out."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = 0
        self._served = 0

    @contextmanager
    def mine(self) -> Iterator[None]:
        """Around what one at a time may do."""
        with self._condition:
            number = self._next
            self._next += 1
            self._condition.wait_for(lambda: self._served == number)
        try:
            yield
        finally:
            with self._condition:
                self._served += 1
                self._condition.notify_all()


@dataclass(slots=True, eq=False)
class _Call:
    """One client's inputs on their way. ``left``: inputs without an outcome."""

    items: Many[Request | RequestError]
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome]
    left: int
    given_up: bool = False

    def settle(self, place: int, answer: dict[str, Any] | RequestError, tokens: int = 0) -> bool:
        """Whether that was the last outcome."""
        self.outcomes[place] = Outcome(answer, tokens)
        self.left -= 1
        return self.left == 0

    def tell(self) -> None:
        """In the loop's thread: the client may have gone meanwhile."""
        if not self.future.done():
            self.future.set_result(self.outcomes)


@dataclass(slots=True, eq=False)
class _Work:
    """One input's job. ``left``: sequences that have not run."""

    call: _Call
    place: int
    job: Job[Any]
    left: int
    outputs: dict[int, Arrays | RequestError] = field(default_factory=dict)


_Waiting = tuple[int, int, _Work, int]
"""Round, number, and which sequence of which job."""


class Batcher:
    """Runs an engine for many clients of one event loop.

    ``capacity``: calls that may wait or run; one more is refused as overloaded. ``turns``: shared by the models of one
    device. ``observe``: of the stages "encode", "run" and "finish". ``lost``: called, in a thread, behind every pass
    after which the engine's device has failed for good.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        capacity: int = 1000,
        turns: Turns | None = None,
        observe: Observe = lambda stage, seconds: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._capacity = capacity
        self._turns = turns or Turns()
        self._observe = observe
        self._lost = lost
        self._numbers = itertools.count()
        self._round = 0
        self._arrived: deque[_Call] = deque()
        self._ready: list[_Waiting] = []
        self._calls = 0
        self._stopping = False
        self._encoded = False
        self._changed = threading.Condition()
        self._tokenizing = threading.Lock()
        # Candidates for a mask become text by the tokenizer, which takes one caller at a time.
        self._finishing: AbstractContextManager[Any] = (
            self._tokenizing if engine.facts.task == "fill_mask" else nullcontext()
        )
        self._threads = [
            threading.Thread(target=target, name=f"efft-{name}", daemon=True)
            for name, target in (("encode", self._encode_all), ("run", self._run_all))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def calls(self) -> int:
        """Calls that wait or run."""
        return self._calls

    @property
    def waiting(self) -> int:
        """Sequences that are tokenized and wait for a pass."""
        return len(self._ready)

    async def answers(self, items: Many[Request | RequestError], deadline: float) -> list[Outcome]:
        """An outcome for each input, in order. ``deadline``: of time.monotonic; what has not begun by then fails as
        overloaded. A caller that is cancelled gives up what has not begun. Raises RequestError where too many wait."""
        if self._calls >= self._capacity:
            raise RequestError("overloaded", "too many requests wait; ask again")
        if self._stopping:
            raise RequestError("overloaded", "the server is stopping; ask again")
        if not items:
            return []
        loop = asyncio.get_running_loop()
        late = RequestError("overloaded", "no time left for this input; try again or send less")
        call = _Call(items, deadline, loop, loop.create_future(), [Outcome(late)] * len(items), len(items))
        self._calls += 1
        try:
            with self._changed:
                self._arrived.append(call)
                self._changed.notify_all()
            return await call.future
        finally:
            call.given_up = True  # of a call that is done this says nothing
            self._calls -= 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nothing is tokenized and nothing runs: for what uses the engine by itself."""
        with self._tokenizing, self._turns.mine():
            yield

    def close(self) -> None:
        """End the threads, once what waits has been answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _encode_all(self) -> None:
        while calls := self._next_calls():
            try:
                self._encode(calls)
            except BaseException as error:  # a thread that ends would leave every later request without an answer
                self._fail(calls, error)
        with self._changed:
            self._encoded = True
            self._changed.notify_all()

    def _next_calls(self) -> list[_Call]:
        """Calls of AT_ONCE inputs together; none when the batcher is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._arrived or self._stopping)
                calls: list[_Call] = []
                inputs = 0
                while self._arrived and inputs < AT_ONCE:
                    call = self._arrived.popleft()
                    if not call.given_up:
                        calls.append(call)
                        inputs += len(call.items)
                if calls or (self._stopping and not self._arrived):
                    return calls

    def _encode(self, calls: list[_Call]) -> None:
        valid = [(call, place) for call in calls for place, item in enumerate(call.items) if isinstance(item, Request)]
        begin = time.perf_counter()
        with self._tokenizing:
            jobs = encoded(self._engine, [call.items[place] for call, place in valid])
        self._observe("encode", time.perf_counter() - begin)
        done = [
            call
            for call in calls
            for place, item in enumerate(call.items)
            if isinstance(item, RequestError) and call.settle(place, item)
        ]
        works: list[_Work] = []
        for (call, place), job in zip(valid, jobs, strict=True):
            if not isinstance(job, RequestError):
                works.append(_Work(call, place, job, len(job.sequences)))
            elif call.settle(place, job):
                done.append(call)
        tell(done)
        if empty := [work for work in works if not work.left]:
            self._finish(empty)
        self._queue(works)

    def _queue(self, works: list[_Work]) -> None:
        budget = self._engine.pass_tokens
        with self._changed:
            call, tokens = None, 0
            for work in works:
                if work.call is not call:
                    call, tokens = work.call, 0
                for index, sequence in enumerate(work.job.sequences):
                    turn = self._round + tokens // budget
                    heapq.heappush(self._ready, (turn, next(self._numbers), work, index))
                    tokens += len(sequence.ids)
            self._changed.notify_all()

    def _run_all(self) -> None:
        while taken := self._next_pass():
            try:
                self._run(taken)
            except BaseException as error:  # as above
                self._fail([work.call for work, _ in taken], error)

    def _next_pass(self) -> list[tuple[_Work, int]]:
        """What the budget holds; none when the batcher is closed and everything was run."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._ready or self._encoded)
                if not self._ready:
                    return []
                if taken := self._taken():
                    return taken

    def _taken(self) -> list[tuple[_Work, int]]:
        left = self._engine.pass_tokens
        now = time.monotonic()
        taken: list[tuple[_Work, int]] = []
        late: list[_Call] = []
        while self._ready:
            turn, _, work, index = self._ready[0]
            size = len(work.job.sequences[index].ids)
            if taken and size > left:
                break
            heapq.heappop(self._ready)
            if work.call.given_up:
                continue
            if work.call.deadline < now:
                work.call.given_up = True
                late.append(work.call)
                continue
            taken.append((work, index))
            left -= size
            self._round = max(self._round, turn)
        self._round += 1
        tell(late)
        return taken

    def _run(self, taken: list[tuple[_Work, int]]) -> None:
        sequences: list[Sequence] = [work.job.sequences[index] for work, index in taken]
        begin = time.perf_counter()
        with self._turns.mine():
            outputs = self._engine.packer.run(sequences)
        self._observe("run", time.perf_counter() - begin)
        whole: list[_Work] = []
        for (work, index), output in zip(taken, outputs, strict=True):
            work.outputs[index] = output
            work.left -= 1
            if not work.left and not work.call.given_up:
                whole.append(work)
        if whole:
            self._finish(whole)
        if self._engine.lost:
            self._lost()

    def _finish(self, works: list[_Work]) -> None:
        begin = time.perf_counter()
        outputs = [work.outputs[index] for work in works for index in range(len(work.job.sequences))]
        with self._finishing:
            answers = self._engine.finish([work.job for work in works], outputs, arrays=True)
        done = []
        for work, answer in zip(works, answers, strict=True):
            tokens = sum(len(sequence.ids) for sequence in work.job.sequences)
            if work.call.settle(work.place, answer, tokens):
                done.append(work.call)
        tell(done)
        self._observe("finish", time.perf_counter() - begin)

    def _fail(self, calls: list[_Call], error: BaseException) -> None:
        failure = internal_error(error)
        for call in calls:
            call.outcomes = [Outcome(failure)] * len(call.items)
            call.given_up = True
        tell(list(dict.fromkeys(calls)))


def tell(calls: list[_Call]) -> None:
    """Hand outcomes to the loop that waits for them; one that has been closed waits for nothing."""
    for call in calls:
        try:
            call.loop.call_soon_threadsafe(call.tell)
        except RuntimeError:
            logger.debug("a call's event loop has been closed")


def encoded(engine: Engine, requests: list[Any]) -> list[Job[Any] | RequestError]:
    """Each request's job, or its error; of token ids the tokenizer is not asked."""
    texts = iter(engine.encode([request for request in requests if not isinstance(request, TokenIdsRequest)]))
    return [request.job() if isinstance(request, TokenIdsRequest) else next(texts) for request in requests]
