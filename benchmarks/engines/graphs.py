"""The encoder as an ONNX graph, which two peers start from."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from benchmarks.models import Source
from builder.formats.torchscript import example_inputs

INPUTS = ("ids", "segments", "mask")


def export_onnx(source: Source, path: Path) -> None:
    """Write the fp32 encoder with dynamic batch and length to ``path``."""
    axes = {name: {0: "batch", 1: "length"} for name in (*INPUTS, "hidden")}
    inputs = example_inputs(source.config.vocab_size, 2, 16)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            source.as_type(torch.float32),
            inputs,
            str(path),
            input_names=list(INPUTS),
            output_names=["hidden"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
