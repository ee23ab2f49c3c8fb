"""ONNX Runtime with all that its session optimises; int8 is its dynamic quantisation, per channel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import Engine, register
from benchmarks.engines.graphs import INPUTS, export_onnx
from benchmarks.models import Source
from benchmarks.workloads import Batch


@register
class OnnxRuntime(Engine):
    """One session, as many threads as the others, its threads asleep between calls."""

    name = "onnxruntime"
    types = ("fp32", "int8")
    packages = ("onnxruntime", "onnx")
    looped = True

    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Threads that go on spinning after their call would slow down whichever engine comes next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with tempfile.TemporaryDirectory() as folder:
            model = _graph(source, data_type, Path(folder))
            self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def bind(self, batch: Batch) -> Callable[[], Any]:
        """Run on numpy inputs."""
        inputs = {name: tensor.numpy() for name, tensor in zip(INPUTS, batch.tensors, strict=True)}
        taken = {given.name for given in self.session.get_inputs()}
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items() if name in taken}
        return lambda: self.session.run(["hidden"], inputs)[0]


def _graph(source: Source, data_type: str, folder: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, quantised = folder / "plain.onnx", folder / "int8.onnx"
    export_onnx(source, plain)
    if data_type == "fp32":
        return plain
    quantize_dynamic(plain, quantised, per_channel=True, weight_type=QuantType.QInt8)
    return quantised
