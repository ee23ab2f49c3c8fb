"""Small passes as CUDA graphs: the answers of graph and launches are the same, whatever came before."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builder.checkpoint import load
from builder.formats import WRITERS
from builder.formats.torchscript import example_inputs
from builder.models import DTYPES, packed_model, stock_model
from handler.config import SetupConfig
from handler.formats import load_module
from handler.graphs import Graphs, graphs_of
from handler.packing import Arrays, collate, join
from handler.runtime import TracedModel
from handler.spellings import FILES
from handler.tokenizer import Sequence
from tests.checkpoints import HEADS, make_checkpoint
from tests.unit.handler_fakes import facts

DEVICE = torch.device("cuda", 0)
CLOSE = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1e-1}
"""Of two kernels' answers for one input, beside the largest number of them."""
LONGEST = 60


def _module(folder: Path, task: str, data_type: str = "fp16", *, stock: bool = False, form: str = "torchscript") -> Any:
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(folder / "model", "bert", task))))
    make = stock_model if stock else packed_model
    made: Any = make(checkpoint, DTYPES[data_type], pooling="mean" if task == "embedding" else None)
    WRITERS[form](made, example_inputs(50, 3, 8), folder / FILES[form])
    own = facts(
        task,
        encoder="stock" if stock else "fused",
        model={"format": form, "file": FILES[form], "devices": ["cpu", "cuda"]},
        encoder_spec="" if stock else made.encoder.spec.text(),
    )
    return load_module(folder, own, DEVICE)


def _pair(module: Any, *, packed: bool, fused: bool = True) -> tuple[TracedModel, TracedModel]:
    """The module with graphs and without."""
    graphs = graphs_of(module, DEVICE, packed=packed, fused=fused, longest=LONGEST)
    return (
        TracedModel(module, DEVICE, takes_packed=packed, graphs=graphs),
        TracedModel(module, DEVICE, takes_packed=packed),
    )


def _graphs(model: TracedModel) -> Graphs:
    assert model.graphs is not None
    return model.graphs


def _passes(packed: bool, seed: int = 0) -> list[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Passes of many lengths and rows, which grow and shrink, and of each output's cells those that hold tokens."""
    draw, made = random.Random(seed), []
    for rows in (1, 1, 2, 1, 7, 3, 1, 1, 12, 2, 1, 20):
        lengths = sorted((draw.randint(2, draw.choice([9, 33, LONGEST])) for _ in range(rows)), reverse=True)
        if not packed and rows * max(lengths) > 256:
            lengths = [9] * rows
        texts = [Sequence([draw.randint(5, 49) for _ in range(length)]) for length in lengths]
        padded = collate(texts, 0)
        made.append((join(texts) if packed else padded, padded[2] > 0))
    return made


def _close(ours: Arrays, theirs: Arrays, valid: np.ndarray, packed: bool, tolerance: float) -> None:
    for got, expected in zip(ours, theirs, strict=True):
        assert got.shape == expected.shape
        if not packed and got.shape[:2] == valid.shape:
            got, expected = got[valid], expected[valid]
        assert np.isfinite(got).all()
        assert np.abs(got - expected).max() <= tolerance * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("data_type", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("task", HEADS)
def test_graphs_answer_as_launches_do(tmp_path: Path, task: str, packed: bool, data_type: str) -> None:
    with_graphs, without = _pair(_module(tmp_path, task, data_type), packed=packed)
    passes = _passes(packed)
    expected = [without(*inputs) for inputs, _ in passes]
    first: list[Arrays] = []
    for turn in range(5):  # twice by launches, then captured, then replayed
        for place, (inputs, valid) in enumerate(passes):
            got = with_graphs(*inputs)
            _close(got, expected[place], valid, packed, CLOSE[data_type])
            if turn == 0:
                first.append(got)
            for a, b in zip(got, first[place], strict=True):
                cells = valid if not packed and a.shape[:2] == valid.shape else ...
                assert np.array_equal(a[cells], b[cells]), "the bits depend on what came before"
    assert not _graphs(with_graphs).off
    assert len(_graphs(with_graphs).captured) >= 4


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("task", ["sequence_classification", "question_answering"])
def test_a_stock_encoder_too(tmp_path: Path, task: str, form: str) -> None:
    with_graphs, without = _pair(_module(tmp_path, task, "fp32", stock=True, form=form), packed=False, fused=False)
    passes = _passes(packed=False)
    expected = [without(*inputs) for inputs, _ in passes]
    for _ in range(4):
        for (inputs, valid), reference in zip(passes, expected, strict=True):
            _close(with_graphs(*inputs), reference, valid, False, 1e-4)
    assert _graphs(with_graphs).off or _graphs(with_graphs).captured


def test_new_inputs_in_a_captured_shape(tmp_path: Path) -> None:
    with_graphs, without = _pair(_module(tmp_path, "sequence_classification"), packed=True)
    for seed in range(6):
        for inputs, valid in _passes(True, seed):
            _close(with_graphs(*inputs), without(*inputs), valid, True, CLOSE["fp16"])
    shapes = _graphs(with_graphs).captured
    assert shapes
    for turn in range(40):
        draw = random.Random(turn)
        inputs = join([Sequence([draw.randint(5, 49) for _ in range(draw.randint(2, LONGEST))])])
        _close(with_graphs(*inputs), without(*inputs), np.ones(0), True, CLOSE["fp16"])


class Looks(torch.nn.Module):
    """Asks the device for a number on the way, which no capture survives."""

    def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        scale = float(ids.max().item())
        return ((ids * mask).sum(1, keepdim=True).float() / scale,)


def test_a_model_that_cannot_be_captured_leaves_the_process_sound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = collate([Sequence([5, 9, 30, 2])], 0)
    with caplog.at_level("INFO"):
        with_graphs, without = _pair(Looks(), packed=False, fused=False)
        for _ in range(6):
            assert np.array_equal(with_graphs(*inputs)[0], without(*inputs)[0])
    assert _graphs(with_graphs).off
    assert len([record for record in caplog.records if "cannot be captured" in record.getMessage()]) == 1
    torch.cuda.empty_cache()  # torch before 2.12 fails here where it takes the capture to be under way
    torch.cuda.synchronize()
    block = torch.empty(1 << 28, device=DEVICE)
    del block
    torch.cuda.empty_cache()
    other, plain = _pair(_module(tmp_path, "sequence_classification"), packed=True)
    packed = join([Sequence([5, 9, 30, 2])])
    for _ in range(5):
        _close(other(*packed), plain(*packed), np.ones(0), True, CLOSE["fp16"])
    assert _graphs(other).captured


def test_a_failed_pass_costs_the_next_nothing(tmp_path: Path) -> None:
    module = _module(tmp_path, "sequence_classification")
    fails = [False]

    def sometimes(*inputs: torch.Tensor) -> Any:
        outputs = module(*inputs)
        if fails[0]:
            raise RuntimeError("by request")
        return outputs

    sometimes.state_dict = module.state_dict  # type: ignore[attr-defined]
    with_graphs, without = _pair(sometimes, packed=True)
    for length in (5, 30, 5, 50, 30, 5, 50, 5, 30):
        inputs = join([Sequence([7] * length)])
        fails[0] = True
        if not _graphs(with_graphs).captured:
            with pytest.raises(RuntimeError, match="by request"):
                with_graphs(*join([Sequence([9] * (length + 1))]))
        fails[0] = False
        _close(with_graphs(*inputs), without(*inputs), np.ones(0), True, CLOSE["fp16"])


def test_several_models_in_several_threads(tmp_path: Path) -> None:
    pairs = [
        _pair(_module(tmp_path / str(number), task), packed=True)
        for number, task in enumerate(["sequence_classification", "token_classification", "embedding"])
    ]

    def work(number: int) -> int:
        with_graphs, without = pairs[number]
        for _ in range(6):
            for inputs, valid in _passes(True, number):
                _close(with_graphs(*inputs), without(*inputs), valid, True, CLOSE["fp16"])
        return len(_graphs(with_graphs).captured)

    with ThreadPoolExecutor(len(pairs)) as pool:
        assert all(count >= 4 for count in pool.map(work, range(len(pairs))))
    assert not any(_graphs(with_graphs).off for with_graphs, _ in pairs)


def test_memory_of_graphs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.graphs._KEPT", 6)
    with_graphs, _ = _pair(_module(tmp_path, "sequence_classification"), packed=True)

    def turn() -> int:
        for length in range(4, LONGEST, 4):
            for rows in (1, 3, 9):
                for _ in range(3):
                    with_graphs(*join([Sequence([7] * length)] * rows))
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()

    before = turn()
    assert len(_graphs(with_graphs).captured) <= 6
    assert max(turn() for _ in range(3)) <= before + (1 << 24)


def test_where_the_last_graph_has_gone_others_are_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.graphs._KEPT", 1)
    with_graphs, without = _pair(_module(tmp_path, "sequence_classification"), packed=True)
    for length in (5, 30, 50):
        inputs = join([Sequence([7] * length)])
        for _ in range(4):
            _close(with_graphs(*inputs), without(*inputs), np.ones(0), True, CLOSE["fp16"])
        assert len(_graphs(with_graphs).captured) == 1
    assert not _graphs(with_graphs).off


def test_graphs_that_were_let_go_are_captured_again(tmp_path: Path) -> None:
    with_graphs, without = _pair(_module(tmp_path, "sequence_classification"), packed=True)
    inputs = join([Sequence([7] * 30)])
    for _ in range(2):
        for _ in range(4):
            _close(with_graphs(*inputs), without(*inputs), np.ones(0), True, CLOSE["fp16"])
        assert _graphs(with_graphs).release()
        assert not _graphs(with_graphs).release()
        torch.cuda.empty_cache()
        _graphs(with_graphs)._rests = 0
    assert not _graphs(with_graphs).off


def test_the_environment_turns_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFT_GPU_GRAPHS", "off")
    assert graphs_of(Looks(), DEVICE, packed=False, fused=False, longest=9) is None
