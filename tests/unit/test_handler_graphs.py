"""Small passes in rounded shapes: what is added never shows, nor whether a shape has its graph yet.

On a CPU nothing is captured: a replay does again what was enqueued. The GPU's twin is tests/gpu/test_graphs.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from handler.graphs import Graphs, graphs_of, packed_shape
from handler.metrics import Metrics
from handler.packing import Packer, collate, join
from handler.runtime import TracedModel
from handler.tokenizer import Sequence
from tests.unit.handler_fakes import PooledLogits, SeveralOutputs, TokenOutputs

CPU = torch.device("cpu")


class Packed(torch.nn.Module):
    """Of packed ids: of each text the mean of its tokens, and of each token two numbers."""

    def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert len(ids) <= (len(mask) - 1) * mask.shape[1]
        assert int((mask[1:, 0] - mask[:-1, 0]).max()) <= mask.shape[1]
        texts = [(ids + segments)[start:end] for start, end in zip(mask[:-1, 0], mask[1:, 0], strict=True)]
        means = torch.stack([text.double().mean().reshape(1).float() for text in texts])
        assert means.isfinite().all()
        return means, torch.stack([ids * 2, ids + segments], 1).float()


class Fake:
    """In a capture's place: what it makes enqueues again. ``error``: what the next one raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.replays = 0
        self.captured = 0

    def __call__(self, enqueue: Callable[[], None]) -> Any:
        if self.error is not None:
            raise self.error
        self.captured += 1
        self.enqueue = enqueue
        return _Replayed(self, enqueue)


class _Replayed:
    def __init__(self, fake: Fake, enqueue: Callable[[], None]) -> None:
        self.fake, self.enqueue = fake, enqueue

    def replay(self) -> None:
        self.fake.replays += 1
        self.enqueue()


def _models(module: Any, *, packed: bool, longest: int = 64) -> tuple[TracedModel, TracedModel, Fake]:
    """The same module with graphs and without, and what stands in for the capture."""
    fake = Fake()
    graphs = Graphs(module, CPU, packed=packed, most=512, longest=longest, capture=fake)
    return (
        TracedModel(module, CPU, takes_packed=packed, graphs=graphs),
        TracedModel(module, CPU, takes_packed=packed),
        fake,
    )


def _texts(draw: random.Random, rows: int, longest: int) -> list[Sequence]:
    made = []
    for _ in range(rows):
        length = draw.randint(1, longest)
        made.append(Sequence([draw.randint(5, 90) for _ in range(length)], [draw.randint(0, 1) for _ in range(length)]))
    return sorted(made, key=lambda text: -len(text.ids))


MODULES: dict[str, tuple[Any, bool]] = {
    "packed": (Packed(), True),
    "of rows": (PooledLogits(3), False),
    "of tokens": (TokenOutputs(2), False),
    "of tokens and labels": (TokenOutputs(1, 5), False),
    "as wide as its texts": (PooledLogits(16), False),
    "several": (SeveralOutputs(16), False),
}


@pytest.mark.parametrize("name", MODULES)
def test_graph_and_plain_pass_agree(name: str) -> None:
    module, packed = MODULES[name]
    ours, plain, fake = _models(module, packed=packed)
    draw = random.Random(0)
    for rows in (1, 1, 1, 2, 5, 1, 8, 3, 1, 1, 8, 8, 2, 1) * 5:
        texts = _texts(draw, rows, draw.choice([1, 7, 16, 40]))
        inputs = join(texts) if packed else collate(texts, 0)
        for got, expected in zip(ours(*inputs), plain(*inputs), strict=True):
            assert got.shape == expected.shape
            cells = inputs[2] > 0 if not packed and expected.shape[:2] == inputs[2].shape and got.ndim > 1 else ...
            assert np.allclose(got[cells], expected[cells], atol=1e-5)
    assert ours.graphs is not None
    assert not ours.graphs.off
    assert fake.replays > 20


@pytest.mark.parametrize("packed", [True, False])
def test_the_third_pass_of_a_shape_is_captured_and_bits_stay(packed: bool) -> None:
    ours, _, fake = _models(Packed() if packed else PooledLogits(3), packed=packed)
    texts = _texts(random.Random(1), 3, 20)
    inputs = join(texts) if packed else collate(texts, 0)
    runs = [ours(*inputs) for _ in range(5)]
    assert (fake.captured, fake.replays) == (1, 3)
    assert all(np.array_equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


def test_an_answer_stays_when_the_next_pass_lands() -> None:
    ours, plain, _ = _models(Packed(), packed=True)
    inputs = [join(_texts(random.Random(seed), 2, 9)) for seed in range(12)]
    kept = [ours(*one) for one in inputs]
    for one, got in zip(inputs, kept, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(got, plain(*one), strict=True))


def test_passes_beyond_the_limits_keep_their_own_shape() -> None:
    ours, plain, fake = _models(Packed(), packed=True)
    large = join(_texts(random.Random(0), 60, 30))
    for _ in range(4):
        assert all(np.array_equal(a, b) for a, b in zip(ours(*large), plain(*large), strict=True))
    assert fake.captured == 0
    # Of a large vocabulary one text's numbers would fill what is kept for all.
    wide, _, other = _models(TokenOutputs(1, 30_000), packed=False)
    for _ in range(4):
        wide(*collate([Sequence([5] * 9)], 0))
    assert other.captured == 0


@pytest.mark.parametrize(("longest", "expected"), [(64, 64), (50, 50), (24, 24)])
def test_no_text_becomes_longer_than_the_model_takes(longest: int, expected: int) -> None:
    shape = packed_shape(3 * longest, 3, longest, longest)
    assert shape.columns == expected
    assert shape.tokens - 3 * longest <= (shape.rows - 3) * shape.columns


@pytest.mark.parametrize("most", [16, 24, 512])
def test_added_tokens_always_have_room(most: int) -> None:
    for tokens in range(1, 1500, 7):
        for rows in {1, 2, max(1, tokens // most), tokens}:
            if tokens > rows * most:
                continue
            longest = min(most, tokens - rows + 1)
            shape = packed_shape(tokens, rows, longest, most)
            added, more = shape.tokens - tokens, shape.rows - rows
            assert more >= 1
            assert more <= added <= more * shape.columns


def test_a_model_that_cannot_be_captured_is_answered_without_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    ours, plain, fake = _models(Packed(), packed=True)
    fake.error = RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
    inputs = join(_texts(random.Random(0), 2, 9))
    with caplog.at_level("INFO"):
        for _ in range(6):
            assert all(np.array_equal(a, b) for a, b in zip(ours(*inputs), plain(*inputs), strict=True))
    (line,) = [record.getMessage() for record in caplog.records if "captured" in record.getMessage()]
    assert line.endswith("operation not permitted when stream is capturing")
    assert ours.graphs is not None
    assert ours.graphs.off


def test_without_memory_for_a_graph_it_is_asked_for_again_later() -> None:
    ours, _, fake = _models(Packed(), packed=True)
    inputs = join(_texts(random.Random(0), 2, 9))
    fake.error = torch.OutOfMemoryError("CUDA out of memory")
    for _ in range(10):
        ours(*inputs)
    fake.error = None
    for _ in range(50):
        ours(*inputs)
    assert fake.captured == 0
    for _ in range(10):
        ours(*inputs)
    assert fake.captured == 1


def test_a_lone_text_without_memory_gets_that_of_the_graphs() -> None:
    ours, plain, fake = _models(Packed(), packed=True)
    graphs, module = ours.graphs, ours.module
    assert graphs is not None

    def crowded(ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if graphs.captured and len(ids) > 512:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return module(ids, segments, mask)

    ours.module = crowded
    packer = Packer(ours, pad_id=0, max_tokens=2048, keep=None, packed=True, metrics=Metrics(), per_token=True)
    short, long = Sequence([6] * 9), Sequence([7] * 600)
    for _ in range(3):
        packer.run([short])
    assert (len(graphs.captured), fake.captured) == (1, 1)
    (answer,) = packer.run([long])
    assert isinstance(answer, tuple), answer
    assert np.array_equal(answer[1], plain(*join([long]))[1])
    for _ in range(9):
        packer.run([short])
    assert fake.captured == 1, "what was wanted of it is not taken again at once"


def test_outputs_of_another_kind_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(torch.nn.Module):
        def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
            return (ids.float().sum().reshape(1, 1),)

    class Wider(torch.nn.Module):
        def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
            return (ids[:, : min(ids.shape[1], 9)].float(),)

    for module in (Odd(), Wider()):
        ours, plain, fake = _models(module, packed=False)
        inputs = collate(_texts(random.Random(0), 2, 30), 0)
        with caplog.at_level("INFO"):
            for _ in range(4):
                assert all(np.array_equal(a, b) for a, b in zip(ours(*inputs), plain(*inputs), strict=True))
        assert fake.captured == 0


def test_a_pass_that_fails_costs_the_next_nothing() -> None:
    class Fails(Packed):
        def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if bool((ids == 7).any()):
                raise RuntimeError("seven")
            return super().forward(ids, segments, mask)

    ours, plain, fake = _models(Fails(), packed=True)
    good, bad = join([Sequence([5, 6, 8])]), join([Sequence([5, 7, 8])])
    for _ in range(4):
        with pytest.raises(RuntimeError, match="seven"):
            ours(*bad)
        assert all(np.array_equal(a, b) for a, b in zip(ours(*good), plain(*good), strict=True))
    assert fake.captured == 1
    assert ours.graphs is not None
    assert not ours.graphs.off


def test_the_shapes_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.graphs._KEPT", 2)
    ours, _, fake = _models(Packed(), packed=True)
    for tokens in (10, 20, 40, 60, 20, 10, 50):
        for _ in range(3):
            ours(*join([Sequence([6] * tokens)]))
    assert ours.graphs is not None
    assert len(ours.graphs.captured) <= 2
    assert fake.captured > 4


def test_shapes_that_come_once_push_out_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.graphs._KEPT", 2)
    monkeypatch.setattr("handler.graphs._SEEN", 3)
    ours, _, fake = _models(Packed(), packed=True)
    assert ours.graphs is not None
    often = [join([Sequence([6] * tokens)]) for tokens in (10, 40)]
    for inputs in often * 3:
        ours(*inputs)
    assert fake.captured == 2
    for tokens in range(60, 400, 20):
        ours(*join([Sequence([6] * tokens)]))
    for inputs in often:
        ours(*inputs)
    assert fake.captured == 2
    for _ in range(3):  # and one that comes often gets its graph all the same
        ours(*join([Sequence([6] * 90)]))
    assert fake.captured == 3
    assert len(ours.graphs.captured) == 2


def test_a_cpu_has_none() -> None:
    assert graphs_of(Packed(), CPU, packed=True, fused=True, longest=512) is None
