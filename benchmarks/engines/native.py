"""The three ways the product can store a model, and torch.compile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import libraries
from benchmarks.engines.base import Engine, register
from benchmarks.models import DTYPES, Source
from benchmarks.workloads import Batch, make_batch, make_workload
from builder.encoder import PackedEncoder, PackedWeights, pack, prepare, tensors_of
from builder.families import family_of, spec_of
from builder.formats.torchscript import example_inputs, save_torchscript
from builder.quantisation.calibration import spans_of
from builder.quantisation.quantise import Step, quantise, steps_of
from builder.slots import matrices


class _Module(Engine):
    """An engine that is a torch module."""

    types = ("fp32", "bf16", "fp16")
    devices = ("cpu", "cuda")
    module: Any

    def bind(self, batch: Batch) -> Callable[[], Tensor]:
        """Call the module on the padded batch."""
        return _inferring(self.module, batch)


@register
class Eager(_Module):
    """transformers as it is."""

    name = "ori"

    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None:
        self.module = source.as_type(DTYPES[data_type], device)


@register
class TorchScript(_Module):
    """The stock encoder traced, saved and loaded as an archive of kind ths is; on a GPU frozen besides, as no archive
    is: torch then makes one product of three that share their input."""

    name = "ths"
    looped = True

    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None:
        self.module = _through_file(source.as_type(DTYPES[data_type]), source, device)
        self.freezes = device == "cuda"

    def bind(self, batch: Batch) -> Callable[[], Tensor]:
        """As the base class. On a GPU each batch gets a frozen module of its own, since torch compiles a module's fused
        kernels for the first shapes that it sees, and later shapes pay for it at every call."""
        if not self.freezes:
            return super().bind(batch)
        with torch.no_grad():
            return _inferring(torch.jit.freeze(self.module), batch)


@register
class Fused(_Module):
    """The padding-free encoder operator, traced, saved, loaded and prepared as an archive of kind thsext is.

    int8 and fp8: every matrix in 8 bits, tables and what is left of the arithmetic in bf16, on a GPU in fp16.
    """

    name = "thsext"
    types = ("fp32", "bf16", "fp16", "int8", "fp8")

    @classmethod
    def absent(cls, data_type: str, device: str) -> str | None:
        """As the base class; no CPU multiplies fp8."""
        if (data_type, device) == ("fp8", "cpu"):
            return "no fp8 on cpu"
        return super().absent(data_type, device)

    @classmethod
    def prepare(cls, device: str) -> None:
        """Compile the kernels, if that was not done before, and load them."""
        libraries.load(device)

    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None:
        self.prepare(device)
        spec = spec_of(source.config)
        module = PackedEncoder(spec, packed_weights(source, data_type, device), "hidden")
        self.module = _through_file(module, source, device)
        self.module.matrices = prepare(spec, self.module).matrices


def packed_weights(source: Source, data_type: str, device: str) -> PackedWeights:
    """The encoder's weights as an archive for the device holds them."""
    spec = spec_of(source.config)
    dtype = DTYPES.get(data_type, torch.bfloat16 if device == "cpu" else torch.float16)
    weights = pack(tensors_of(source.model), family_of(source.config), spec, dtype)
    if data_type not in ("int8", "fp8"):
        return weights
    exact = pack(tensors_of(source.model), family_of(source.config), spec, torch.float32)
    steps = _steps(source, data_type, device)
    return replace(weights, matrices=quantise(exact.matrices, exact.vectors, spec, number=data_type, steps=steps))


def _steps(source: Source, data_type: str, device: str) -> dict[str, Step]:
    """The steps that the builder gives operands behind attention and activations, by a batch of random tokens. On a CPU
    int8 gives each token its own."""
    if device == "cpu":
        return {}
    spec, family = spec_of(source.config), family_of(source.config)
    batch = make_batch(make_workload("4x32", "half"), source.config.vocab_size)
    fed = [slot for slot in matrices(spec) if slot.feed in ("attention", "activation")]
    watched = {slot.name: family.modules(slot.name, slot.layer)[0] for slot in fed}
    whole = source.as_type(torch.float32)

    def run(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        with torch.inference_mode():
            whole(*inputs)

    spans = spans_of(whole.model, watched, [batch.tensors], run)
    return steps_of({name: (float(low.min()), float(high.max())) for name, (low, high) in spans.items()}, data_type)


@register
class Compiled(_Module):
    """torch.compile: on a CPU dynamic shapes and frozen weights, on a GPU static shapes and CUDA graphs."""

    name = "compile"
    looped = True

    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None:
        from torch._inductor import config

        config.freezing = device == "cpu"  # lets oneDNN prepack the weights
        torch._dynamo.config.recompile_limit = 64
        options: dict[str, Any] = (
            {"dynamic": True} if device == "cpu" else {"dynamic": False, "mode": "reduce-overhead"}
        )
        self.module = torch.compile(source.as_type(DTYPES[data_type], device), **options)
        if device == "cpu":
            for size in ("1x8", "2x16"):  # one sequence is a case of its own; all other shapes are one
                self.bind(make_batch(make_workload(size, "half"), source.config.vocab_size))()

    def bind(self, batch: Batch) -> Callable[[], Tensor]:
        """As the base class, without inference mode: freezing refuses its tensors."""
        inputs = batch.tensors

        def call() -> Tensor:
            with torch.no_grad():
                return self.module(*inputs)

        return call


def _inferring(module: Callable[..., Tensor], batch: Batch) -> Callable[[], Tensor]:
    inputs = batch.tensors

    def call() -> Tensor:
        with torch.inference_mode():
            return module(*inputs)

    return call


def _through_file(module: nn.Module, source: Source, device: str) -> torch.jit.ScriptModule:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        save_torchscript(module, example_inputs(source.config.vocab_size, 2, 16), path)
        return torch.jit.load(str(path), map_location=device).eval()
