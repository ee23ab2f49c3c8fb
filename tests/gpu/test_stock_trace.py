"""The stock encoder, traced on the CPU as the builder does, on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builder.checkpoint import load
from builder.models import stock_model
from builder.trace import example_inputs, save_torchscript
from handler.config import SetupConfig
from tests.checkpoints import FAMILIES, make_checkpoint


@pytest.mark.parametrize("data_type", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_made_on_the_cpu_runs_on_a_gpu(tmp_path: Path, family: str, data_type: torch.dtype) -> None:
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, family))))
    save_torchscript(stock_model(checkpoint, data_type, pooling=None), example_inputs(50, 3, 8), tmp_path / "model.pt")
    inputs = example_inputs(50, 4, 16)
    with torch.inference_mode():
        expected = torch.jit.load(tmp_path / "model.pt")(*inputs)
        moved = torch.jit.load(tmp_path / "model.pt", map_location="cuda")
        outputs = moved(*(tensor.cuda() for tensor in inputs))
    tolerance = 1e-3 if data_type == torch.float32 else 3e-2
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)
