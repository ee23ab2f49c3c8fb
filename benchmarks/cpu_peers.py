"""The engines to compare, each at the best settings found for it.

``build(name, case, dtype, threads)`` returns an engine whose ``variants(batch, lengths)`` are calls that return padded
hidden states: "" is the batch as it is, " loop" one sequence at a time, the simplest way to avoid padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cpu_models import Case, Encoder, Layer

Batch = tuple[Tensor, Tensor, Tensor]
Calls = dict[str, Callable[[], Tensor]]


class Engine(Protocol):
    """What the benchmark asks of an engine."""

    def variants(self, batch: Batch, lengths: list[int]) -> Calls:
        """The calls to time."""
        ...


class Efft:
    """Ours: ragged batches as they are."""

    def __init__(self, case: Case, dtype: str, threads: int) -> None:
        from builder import quantise
        from builder.compile import compile_cpu

        torch.ops.load_library(str(compile_cpu()))
        s, plain = case.shape, case.plain
        matrices, vectors = case.arenas()
        served = torch.float32 if dtype == "fp32" else torch.bfloat16
        matrices = quantise.quantise(matrices, vectors, s) if dtype == "int8" else matrices.to(served)
        self.tables = [table.weight.detach().to(served) for table in (plain.word, plain.position, plain.segment)]
        self.arenas = [torch.ops.efft.prepare(matrices, s.layers, s.hidden, s.embedding, s.intermediate), vectors]
        self.numbers = [s.layers, s.hidden, s.heads, s.intermediate, "gelu", False, 1e-12, 0, False, "hidden"]

    def variants(self, batch: Batch, lengths: list[int]) -> Calls:
        """One call; padding costs it nothing."""
        return {"": lambda: torch.ops.efft.encoder(*batch, *self.tables, *self.arenas, *self.numbers)}


def padded_or_looped(call: Callable[[Batch], Tensor], batch: Batch, lengths: list[int]) -> Calls:
    """The batch padded, and one sequence at a time where there are several."""

    def loop() -> Tensor:
        out = None
        for row, length in enumerate(lengths):
            part = call(tuple(tensor[row : row + 1, :length].contiguous() for tensor in batch))
            out = part.new_zeros(*batch[0].shape, part.shape[-1]) if out is None else out
            out[row, :length] = part[0]
        return out

    calls: Calls = {"": lambda: call(batch)}
    return calls if len(lengths) == 1 else {**calls, " loop": loop}


class Packed:
    """Plain PyTorch on packed tokens: oneDNN products with prepacked weights, attention sequence by sequence."""

    def __init__(self, case: Case, dtype: str, threads: int) -> None:
        self.case = case
        self.dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
        self.products = [self._layer(layer, dtype) for layer in case.plain.layers]
        self.norms = [
            [(n.weight.to(self.dtype), n.bias.to(self.dtype)) for n in (layer.attention_norm, layer.output_norm)]
            for layer in case.plain.layers
        ]

    def _layer(self, layer: Layer, dtype: str) -> list[Callable[[Tensor, str], Tensor]]:
        linears = (layer.qkv, layer.attention_output, layer.intermediate, layer.output)
        return [self._dynamic(linear) if dtype == "int8" else self._prepacked(linear) for linear in linears]

    def _prepacked(self, linear: nn.Linear) -> Callable[[Tensor, str], Tensor]:
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(self.dtype), 512)
        bias = linear.bias.detach().to(self.dtype)
        # An empty algorithm is right for "none"; "none" as an algorithm is oneDNN's word for the exact GELU.
        algorithm = {"none": "", "gelu": "none"}
        return lambda x, after: torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], algorithm[after])

    def _dynamic(self, linear: nn.Linear) -> Callable[[Tensor, str], Tensor]:
        torch.backends.quantized.engine = "x86"
        observer = torch.ao.quantization.default_per_channel_weight_observer()
        observer(linear.weight.detach())
        scale, zero = observer.calculate_qparams()
        quantised = torch.quantize_per_channel(linear.weight.detach(), scale.double(), zero.long(), 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantised, linear.bias.detach())

        def call(x: Tensor, after: str) -> Tensor:
            y = torch.ops.quantized.linear_dynamic(x.float(), packed).to(self.dtype)
            return F.gelu(y) if after == "gelu" else y

        return call

    def variants(self, batch: Batch, lengths: list[int]) -> Calls:
        """One call."""
        return {"": lambda: self._encode(batch, lengths)}

    def _encode(self, batch: Batch, lengths: list[int]) -> Tensor:
        ids, segments, mask = batch
        plain, heads = self.case.plain, self.case.shape.heads
        rows = mask.flatten().nonzero().squeeze(1)
        positions = torch.arange(ids.shape[1]).repeat(ids.shape[0])[rows]
        x = plain.word(ids.flatten()[rows]) + plain.position(positions) + plain.segment(segments.flatten()[rows])
        x = plain.norm(x).to(self.dtype)
        for (qkv, output, up, down), (norm1, norm2) in zip(self.products, self.norms, strict=True):
            parts = qkv(x, "none").split(lengths)
            context = torch.cat([self._attend(part, heads) for part in parts])
            x = F.layer_norm(x + output(context, "none"), x.shape[-1:], *norm1, 1e-12)
            x = F.layer_norm(x + down(up(x, "gelu"), "none"), x.shape[-1:], *norm2, 1e-12)
        out = x.new_zeros(mask.numel(), x.shape[-1])
        out[rows] = x
        return out.view(*mask.shape, -1)

    @staticmethod
    def _attend(qkv: Tensor, heads: int) -> Tensor:
        q, k, v = qkv.view(1, qkv.shape[0], 3, heads, -1).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(qkv.shape[0], -1)


class OpenVino:
    """OpenVINO with a latency hint; int8 is its post-training quantisation for transformers, calibrated on noise."""

    def __init__(self, case: Case, dtype: str, threads: int) -> None:
        import openvino

        example = case.batch([9, 5])
        model = openvino.convert_model(case.plain, example_input=example)
        if dtype == "int8":
            import nncf

            samples = [tuple(t.numpy() for t in case.batch([n])) for n in (7, 31, 64, 128)]
            model = nncf.quantize(
                model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
            )
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if dtype == "fp32" else "bf16",
        }
        self.request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def _call(self, batch: Batch) -> Tensor:
        result = self.request.infer([tensor.numpy() for tensor in batch], share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0])

    def variants(self, batch: Batch, lengths: list[int]) -> Calls:
        """Padded and looped."""
        return padded_or_looped(self._call, batch, lengths)


class OnnxRuntime:
    """ONNX Runtime with all graph optimisations; int8 is its dynamic quantisation per channel, bf16 it lacks."""

    def __init__(self, case: Case, dtype: str, threads: int) -> None:
        import tempfile
        from pathlib import Path

        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(case.plain, case.batch([9, 5]), path)
            if dtype == "int8":
                quantize_dynamic(path, path.with_suffix(".q"), per_channel=True, weight_type=QuantType.QInt8)
                path = path.with_suffix(".q")
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _call(self, batch: Batch) -> Tensor:
        feeds = {i.name: t.numpy() for i, t in zip(self.session.get_inputs(), batch, strict=True)}
        return torch.from_numpy(self.session.run(None, feeds)[0])

    def variants(self, batch: Batch, lengths: list[int]) -> Calls:
        """Padded and looped."""
        return padded_or_looped(self._call, batch, lengths)


def export_onnx(model: Encoder, example: Batch, path: object) -> None:
    """Write ``model`` as ONNX with free batch and length."""
    names = ["ids", "segments", "mask"]
    axes = {name: {0: "batch", 1: "length"} for name in names}
    torch.onnx.export(model, example, str(path), input_names=names, dynamic_axes=axes, dynamo=False, opset_version=17)


class Compiled:
    """torch.compile with frozen weights on padded input."""

    def __init__(self, case: Case, dtype: str, threads: int) -> None:
        import copy

        import torch._inductor.config as inductor

        if dtype == "int8":
            raise ValueError("inductor is compared in fp32 and bf16 only")
        inductor.freezing = True
        self.dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
        self.call = torch.compile(copy.deepcopy(case.plain).to(self.dtype))

    def variants(self, batch: Batch, lengths: list[int]) -> Calls:
        """Padded only: every other length would compile anew."""
        return {"": lambda: self.call(*batch)}


_CLASSES = {"efft": Efft, "packed": Packed, "openvino": OpenVino, "onnxruntime": OnnxRuntime, "compiled": Compiled}
ENGINES = list(_CLASSES)


def build(name: str, case: Case, dtype: str, threads: int) -> Engine:
    """The engine ``name`` with the case's weights in ``dtype``."""
    return _CLASSES[name](case, dtype, threads)
