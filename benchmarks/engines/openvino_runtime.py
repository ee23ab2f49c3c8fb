"""OpenVINO on a CPU; int8 is NNCF's post-training quantisation for transformers, or of the weights alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.engines.base import Engine, register
from benchmarks.models import Source
from benchmarks.workloads import Batch, make_batch, make_workload
from builder.formats.torchscript import example_inputs

CALIBRATION_SIZES = ("4x32", "2x64", "2x128", "1x384") * 2
"""Batches of random ids that the int8 ranges are read off."""


@register
class OpenVino(Engine):
    """One compiled model in latency mode with one stream, an infer request for each batch.

    int8: products on 8-bit weights and activations, what remains in bf16 where the processor has it.
    """

    name = "openvino"
    types = ("fp32", "bf16", "int8")
    packages = ("openvino",)
    quantiser = ("nncf",)
    looped = True

    @classmethod
    def absent(cls, data_type: str, device: str) -> str | None:
        """As the base class; int8 needs NNCF too."""
        return super().absent(data_type, device) or (cls.missing(cls.quantiser) if data_type == "int8" else None)

    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None:
        import openvino

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inputs = example_inputs(source.config.vocab_size, 2, 16)
            model = openvino.convert_model(source.as_type(torch.float32), example_input=inputs)
        if data_type == "int8":
            model = self.quantised(model, source)
        core = openvino.Core()
        half = data_type != "fp32" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        }
        self.model = core.compile_model(model, "CPU", settings)

    def quantised(self, model: Any, source: Source) -> Any:
        """An OpenVINO model with 8-bit weights and activations, their ranges read off random ids."""
        import nncf

        batches = [
            make_batch(make_workload(size, "full"), source.config.vocab_size, seed=seed)
            for seed, size in enumerate(CALIBRATION_SIZES)
        ]
        data = nncf.Dataset([dict(enumerate(t.numpy() for t in batch.tensors)) for batch in batches])
        return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches))

    def bind(self, batch: Batch) -> Callable[[], Any]:
        """Run a request of its own, so that its output stays."""
        request = self.model.create_infer_request()
        inputs = dict(enumerate(tensor.numpy() for tensor in batch.tensors))

        def call() -> Any:
            request.infer(inputs, share_inputs=True)
            return request.get_output_tensor(0).data

        return call


@register
class OpenVinoWeights(OpenVino):
    """8-bit weights only: no calibration, a smaller loss."""

    name = "openvino-weights"
    types = ("int8",)

    def quantised(self, model: Any, source: Source) -> Any:
        """An OpenVINO model with 8-bit weights."""
        import nncf

        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
