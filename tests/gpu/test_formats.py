"""One file for both devices: TorchScript and torch.export, written on the CPU, give the same bits on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from builder.checkpoint import load
from builder.formats import WRITERS
from builder.formats.torchscript import example_inputs
from builder.gate.compare import FLOOR
from builder.gate.verdict import ALLOWED_RATIO
from builder.models import DTYPES, packed_model, stock_model
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.formats import load_module
from handler.spellings import FILES
from tests.checkpoints import FAMILIES, HEADS, make_checkpoint
from tests.unit.handler_fakes import facts

DEVICE = torch.device("cuda", 0)
SHAPES = [(1, 1), (1, 7), (3, 5), (2, 16), (5, 33), (20, 9)]
CALLS = 4
"""TorchScript looks at the first calls and may compile for the next ones."""


def _facts(task: str, model_format: str, module: Any) -> ArchiveFacts:
    encoder = getattr(module, "encoder", None)
    return facts(
        task,
        encoder="fused" if encoder is not None else "stock",
        model={"format": model_format, "file": FILES[model_format], "devices": ["cpu", "cuda"]},
        encoder_spec=encoder.spec.text() if encoder is not None else "",
    )


def _outputs(folder: Path, task: str, module: Any) -> dict[str, list[tuple[torch.Tensor, ...]]]:
    found = {}
    for name, writer in WRITERS.items():
        writer(module, example_inputs(50, 3, 8), folder / FILES[name])
        loaded = load_module(folder, _facts(task, name, module), DEVICE)
        assert {tensor.device for tensor in loaded.state_dict().values()} == {DEVICE}
        with torch.inference_mode():
            for _ in range(CALLS):
                inputs = [tuple(x.to(DEVICE) for x in example_inputs(50, *shape)) for shape in SHAPES]
                found[name] = [tuple(output.cpu() for output in loaded(*given)) for given in inputs]
    return found


@pytest.mark.parametrize("data_type", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("task", HEADS)
def test_the_fused_encoder_gives_the_same_bits(tmp_path: Path, task: str, data_type: str) -> None:
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path / "model", "bert", task))))
    pooling = "mean" if task == "embedding" else None
    found = _outputs(tmp_path, task, packed_model(checkpoint, DTYPES[data_type], pooling=pooling))
    for ours, theirs in zip(found["export"], found["torchscript"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("data_type", ["fp32", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_encoder_runs_there_and_errs_no_more_than_plain_pytorch(
    tmp_path: Path, family: str, data_type: str
) -> None:
    """Not bit for bit: TorchScript fuses some of transformers' operators on a GPU, torch.export runs each by itself."""
    task = "token_classification"
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path / "model", family, task))))
    model = stock_model(checkpoint, DTYPES[data_type], pooling=None)
    ours = _outputs(tmp_path, task, model)["export"]
    truth = stock_model(checkpoint, torch.float64, pooling=None)
    plain = model.to(DEVICE)
    for shape, (output,) in zip(SHAPES, ours, strict=True):
        inputs = example_inputs(50, *shape)
        valid = inputs[2].bool()
        with torch.inference_mode():
            expected = truth(*inputs)[0][valid]
            beside = plain(*(x.to(DEVICE) for x in inputs))[0].cpu()[valid]
        assert _error(output[valid], expected) <= max(ALLOWED_RATIO * _error(beside, expected), FLOOR)


def _error(output: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean square, relative to the truth's."""
    return float((output.double() - truth).norm() / truth.norm())
