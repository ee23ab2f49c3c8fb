"""The batcher: budgets, order, what is late or given up, and failures that stay with their input."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handler.config import SetupConfig
from handler.engine import Engine
from handler.errors import RequestError
from handler.packing import Arrays
from handler.servers.batching import AT_ONCE, Batcher, Turns
from handler.tokenizer import Tokenizer
from tests.unit.handler_fakes import MAX_LENGTH, VOCABULARY, facts, save_tokenizer

BUDGET = 2 * MAX_LENGTH
LATER = float("inf")


class Model:
    """Notes the passes it is given, waits while it is held, fails where a pass holds the word "two"."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Event()

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        self.began.set()
        assert self.free.wait(20)
        if (ids == VOCABULARY["two"]).any():
            raise ValueError
        self.passes.append((mask > 0).sum(axis=1).tolist())
        return ((ids * mask).sum(axis=1, keepdims=True).astype(np.float32).repeat(4, axis=1),)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def engine(tmp_path: Path, model: Model) -> Engine:
    own = facts("embedding")
    config = SetupConfig.model_validate({"model_name": "fake", "stride": 4, "max_batch_tokens": BUDGET})
    tokenizer = Tokenizer(save_tokenizer(tmp_path / "tokenizer.json"), own.max_positions, own.uses_segments)
    return Engine(own, config, tokenizer, model)


@pytest.fixture
def batcher(engine: Engine, model: Model) -> Iterator[Batcher]:
    made = Batcher(engine)
    yield made
    model.free.set()
    made.close()


def read(engine: Engine, *texts: str) -> list[Any]:
    return [engine.read(text) for text in texts]


def plain(answer: Any) -> Any:
    """An answer or an error, its vector as a list."""
    return answer.body() if isinstance(answer, RequestError) else {**answer, "embedding": list(answer["embedding"])}


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, 20)

    return asyncio.run(bounded())


async def waiting(batcher: Batcher, count: int) -> None:
    while batcher.waiting < count:
        await asyncio.sleep(0.001)


def test_answers_are_the_engines_own(batcher: Batcher, engine: Engine) -> None:
    texts = ["the cat", "", "the cat sat on a mat", "one " * 60]
    outcomes = run(batcher.answers(read(engine, *texts), LATER))
    expected = engine.payloads(read(engine, *texts))
    assert [plain(outcome.answer) for outcome in outcomes] == [plain(answer) for answer in expected]
    assert [o.tokens for o in outcomes] == [4, 0, 8, MAX_LENGTH]
    assert run(batcher.answers([], LATER)) == []


def test_what_has_come_runs_together_within_the_budget(batcher: Batcher, engine: Engine, model: Model) -> None:
    async def many() -> None:
        model.free.clear()
        first = asyncio.create_task(batcher.answers(read(engine, "cat"), LATER))
        await asyncio.to_thread(model.began.wait, 10)
        rest = [asyncio.create_task(batcher.answers(read(engine, "the cat sat on a"), LATER)) for _ in range(12)]
        await waiting(batcher, 12)
        model.free.set()
        await asyncio.gather(first, *rest)

    run(many())
    assert model.passes == [[3], [7] * 6, [7] * 6]  # six of seven tokens fit 48


def test_a_long_list_lets_a_short_request_pass(batcher: Batcher, engine: Engine, model: Model) -> None:
    order: list[str] = []

    async def ask(name: str, count: int) -> None:
        await batcher.answers(read(engine, *["one " * 22] * count), LATER)
        order.append(name)

    async def both() -> None:
        model.free.clear()
        first = asyncio.create_task(ask("first", 1))
        await asyncio.to_thread(model.began.wait, 10)
        long = asyncio.create_task(ask("long", 20))
        await waiting(batcher, 20)
        short = asyncio.create_task(ask("short", 1))
        await waiting(batcher, 21)
        model.free.set()
        await asyncio.gather(first, long, short)

    run(both())
    assert order == ["first", "short", "long"]
    assert sum(map(len, model.passes)) == 22


def test_one_that_fails_costs_no_other_call_its_answer(batcher: Batcher, engine: Engine, model: Model) -> None:
    async def all_of_them() -> list[Any]:
        model.free.clear()
        held = asyncio.create_task(batcher.answers(read(engine, "one"), LATER))
        await asyncio.to_thread(model.began.wait, 10)
        calls = [asyncio.create_task(batcher.answers(read(engine, text), LATER)) for text in ("cat", "two", "mat")]
        await waiting(batcher, 3)
        model.free.set()
        return list(await asyncio.gather(*calls, held))

    (first,), (second,), (third,), _ = run(all_of_them())
    assert second.answer.type == "internal"
    assert "embedding" in first.answer
    assert "embedding" in third.answer


def test_no_pass_begins_after_the_deadline(batcher: Batcher, engine: Engine, model: Model) -> None:
    async def late() -> Any:
        model.free.clear()
        first = asyncio.create_task(batcher.answers(read(engine, "cat"), LATER))
        await asyncio.to_thread(model.began.wait, 10)
        second = asyncio.create_task(batcher.answers(read(engine, "mat", ""), time.monotonic() - 1))
        await waiting(batcher, 1)
        model.free.set()
        await first
        return await second

    outcomes = run(late())
    assert [outcome.answer.type for outcome in outcomes] == ["overloaded", "empty"]
    assert len(model.passes) == 1


def test_what_is_given_up_does_not_run(batcher: Batcher, engine: Engine, model: Model) -> None:
    async def impatient() -> None:
        model.free.clear()
        first = asyncio.create_task(batcher.answers(read(engine, "cat"), LATER))
        await asyncio.to_thread(model.began.wait, 10)
        second = asyncio.create_task(batcher.answers(read(engine, "mat"), LATER))
        await waiting(batcher, 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        model.free.set()
        await first
        await batcher.answers(read(engine, "red"), LATER)

    run(impatient())
    assert model.passes == [[3], [3]]
    assert batcher.calls == 0


def test_more_than_the_capacity_is_refused(engine: Engine, model: Model) -> None:
    small = Batcher(engine, capacity=1)

    async def two() -> None:
        model.free.clear()
        first = asyncio.create_task(small.answers(read(engine, "cat"), LATER))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="too many requests wait"):
            await small.answers(read(engine, "mat"), LATER)
        model.free.set()
        assert "embedding" in (await first)[0].answer

    run(two())
    small.close()
    with pytest.raises(RequestError, match="stopping"):
        run(small.answers(read(engine, "mat"), LATER))


def test_a_fault_of_a_stage_is_an_answer_and_the_threads_live_on(
    batcher: Batcher, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError

    for owner, name in ((engine, "encode"), (engine, "finish"), (engine.packer, "run")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            (outcome,) = run(batcher.answers(read(engine, "cat"), LATER))
            assert outcome.answer.type == "internal"
        (outcome,) = run(batcher.answers(read(engine, "cat"), LATER))
        assert "embedding" in outcome.answer


def test_a_failed_device_is_reported(engine: Engine) -> None:
    told: list[bool] = []
    batcher = Batcher(engine, lost=lambda: told.append(True))
    engine.packer.lost = True
    (outcome,) = run(batcher.answers(read(engine, "cat"), LATER))
    batcher.close()
    assert outcome.answer.type == "overloaded"
    assert told


def test_many_clients_at_once_each_get_their_own(batcher: Batcher, engine: Engine) -> None:
    texts = [" ".join(["one", "red", "blue", "cat"][: 1 + i % 4] * (1 + i % 5)) for i in range(3 * AT_ONCE)]

    async def every() -> list[Any]:
        return list(await asyncio.gather(*(batcher.answers(read(engine, text), LATER) for text in texts)))

    answers = [plain(outcome.answer) for (outcome,) in run(every())]
    assert answers == [plain(answer) for answer in engine.payloads(read(engine, *texts))]


def test_while_alone_nothing_runs(batcher: Batcher, engine: Engine, model: Model) -> None:
    async def ask() -> None:
        with batcher.alone():
            call = asyncio.create_task(batcher.answers(read(engine, "cat"), LATER))
            await asyncio.sleep(0.05)
            assert not model.passes
        await call
        assert len(model.passes) == 1

    run(ask())


def test_turns_are_taken_in_order() -> None:
    turns = Turns()
    order: list[int] = []
    waiting: list[threading.Thread] = []

    def take(number: int) -> None:
        with turns.mine():
            order.append(number)

    with turns.mine():
        for number in range(5):
            waiting.append(threading.Thread(target=take, args=(number,)))
            waiting[-1].start()
            while turns._next < number + 2:
                time.sleep(0.001)
    for thread in waiting:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
