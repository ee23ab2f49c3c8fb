"""Every family with small random configs, in every type, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builder.checkpoint import load
from builder.formats.torchscript import example_inputs, save_torchscript
from builder.gate.parity import compare
from builder.models import DTYPES, packed_model, stock_model
from handler.config import SetupConfig
from tests.checkpoints import FAMILIES, HEADS, make_checkpoint

pytestmark = pytest.mark.usefixtures("cpu_library")


def _verdict(folder: Path, data_type: str, pooling: str | None = None):
    checkpoint = load(SetupConfig(model_name=str(folder)))
    return compare(checkpoint, packed_model(checkpoint, DTYPES[data_type], pooling=pooling), data_type, pooling)


@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(tmp_path: Path, family: str, data_type: str) -> None:
    verdict = _verdict(make_checkpoint(tmp_path, family), data_type)
    assert verdict.passed, verdict.line()


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_task(tmp_path: Path, family: str, task: str) -> None:
    pooling = "mean" if task == "embedding" else None
    verdict = _verdict(make_checkpoint(tmp_path, family, task), "fp32", pooling)
    assert verdict.passed, verdict.line()


def test_cls_pooling(tmp_path: Path) -> None:
    assert _verdict(make_checkpoint(tmp_path, "bert", "embedding"), "fp32", "cls").passed


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 96, "num_attention_heads": 3},
        {"hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1200},
        {"hidden_size": 160, "num_attention_heads": 2},
        {"hidden_size": 128, "num_attention_heads": 1, "intermediate_size": 96},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu", "num_hidden_layers": 1},
    ],
    ids=lambda sizes: "-".join(f"{key}={value}" for key, value in sizes.items()),
)
def test_shapes(tmp_path: Path, sizes: dict[str, object]) -> None:
    verdict = _verdict(make_checkpoint(tmp_path, "bert", **sizes), "fp32")
    assert verdict.passed, verdict.line()


@pytest.mark.parametrize("task", ["sequence_classification", "question_answering", "embedding"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_trace_names_no_device(tmp_path: Path, family: str, task: str) -> None:
    """One made on a CPU must run on a GPU; tests/gpu/test_stock_trace.py lets it."""
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, family, task))))
    model = stock_model(checkpoint, torch.float32, pooling="mean" if task == "embedding" else None)
    save_torchscript(model, example_inputs(50, 3, 8), tmp_path / "model.pt")
    inputs = example_inputs(50, 2, 12)
    traced = torch.jit.load(tmp_path / "model.pt")
    graph = traced.inlined_graph  # its nodes live as long as it does
    assert not [node for node in graph.findAllNodes("prim::Constant") if node.output().type().kind() == "DeviceObjType"]
    for ours, expected in zip(traced(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_scaled_layer_norm_is_noticed(tmp_path: Path) -> None:
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, "bert"))))
    model = packed_model(checkpoint, torch.float32, pooling=None)
    first_gamma = 2 * 64 + 4 * 64
    model.encoder.vectors[first_gamma : first_gamma + 64] *= 1.05
    verdict = compare(checkpoint, model, "fp32", None)
    assert not verdict.passed
    assert verdict.ratio > 100
