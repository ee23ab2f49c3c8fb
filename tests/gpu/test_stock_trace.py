"""The stock encoder, traced on the CPU as the builder does, on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from builder.checkpoint import load
from builder.formats.torchscript import example_inputs, save_torchscript
from builder.gate.compare import FLOOR
from builder.gate.verdict import ALLOWED_RATIO
from builder.models import stock_model
from handler.config import SetupConfig
from tests.checkpoints import FAMILIES, make_checkpoint

DEVICE = "cuda"


@pytest.mark.parametrize("data_type", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_made_on_the_cpu_runs_on_a_gpu(tmp_path: Path, family: str, data_type: torch.dtype) -> None:
    """Against float64 it errs at most twice as much as the model itself on that GPU in that type."""
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, family, "token_classification"))))
    model = stock_model(checkpoint, data_type, pooling=None)
    save_torchscript(model, example_inputs(50, 3, 8), tmp_path / "model.pt")
    inputs = example_inputs(50, 16, 16)
    valid = inputs[2].bool()
    there = [tensor.to(DEVICE) for tensor in inputs]
    with torch.inference_mode():
        truth = stock_model(checkpoint, torch.float64, pooling=None)(*inputs)[0][valid]
        ours = torch.jit.load(tmp_path / "model.pt", map_location=DEVICE)(*there)[0].cpu()[valid]
        plain = model.to(DEVICE)(*there)[0].cpu()[valid]
    assert _error(ours, truth) <= max(ALLOWED_RATIO * _error(plain, truth), FLOOR)


def _error(output: Tensor, truth: Tensor) -> float:
    """Root mean square, relative to the truth's."""
    return float((output.double() - truth).norm() / truth.norm())
