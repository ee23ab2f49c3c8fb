"""Plain PyTorch on packed tokens: what a careful engineer reaches without kernels of his own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.engines.base import Engine, register
from benchmarks.models import DTYPES, Source
from benchmarks.workloads import Batch

Linear = Callable[[Tensor], Tensor]
Attention = Callable[[Tensor], Tensor]


class _Layer:
    """One BERT layer's weights, its products through ``linear``."""

    def __init__(self, layer: Any, linear: Callable[[Tensor, Tensor, str], Linear], heads: int) -> None:
        attention = layer.attention
        projections = [getattr(attention.self, name) for name in ("query", "key", "value")]
        weight, bias = (torch.cat([getattr(p, part) for p in projections]) for part in ("weight", "bias"))
        self.qkv = linear(weight, bias, "none")
        self.output = linear(attention.output.dense.weight, attention.output.dense.bias, "none")
        self.up = linear(layer.intermediate.dense.weight, layer.intermediate.dense.bias, "gelu")
        self.down = linear(layer.output.dense.weight, layer.output.dense.bias, "none")
        self.norms = attention.output.LayerNorm, layer.output.LayerNorm
        self.heads = heads

    def __call__(self, x: Tensor, attend: Attention) -> Tensor:
        x = self.norms[0](self.output(attend(self.qkv(x))) + x)
        return self.norms[1](self.down(self.up(x)) + x)


@register
class Packed(Engine):
    """Valid tokens only: oneDNN-prepacked products and attention per sequence on a CPU; on a GPU attention on
    cumulative lengths (``varlen_attn``), all of it one captured CUDA graph.

    int8 and fp8: weights with a scale per output, each product's input rounded when it runs, on a GPU with a scale per
    token by a kernel that torch.compile makes, the rest in bf16.
    """

    name = "packed"
    types = ("fp32", "bf16", "fp16", "int8", "fp8")
    devices = ("cpu", "cuda")

    @classmethod
    def absent(cls, data_type: str, device: str) -> str | None:
        """As the base class; the types are those that the products and varlen_attn take."""
        wrong = {"cpu": ("fp16", "fp8"), "cuda": ("fp32",)}.get(device, ())
        if data_type in wrong:
            return f"no {data_type} on {device}"
        if device == "cpu" and data_type == "bf16" and not _packs_bf16():
            return "oneDNN has no bf16 on this processor"
        return super().absent(data_type, device)

    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None:
        model = source.as_type(DTYPES.get(data_type, torch.bfloat16), device).model
        if source.config.model_type != "bert":
            raise ValueError("the packed engine is written for BERT")
        self.heads = source.config.num_attention_heads
        self.embeddings = model.embeddings
        on_gpu = {"int8": _integers, "fp8": _scaled}.get(data_type, _plain)
        linear = on_gpu if device != "cpu" else _rounded if data_type == "int8" else _prepacked
        with torch.no_grad():
            self.layers = [_Layer(layer, linear, self.heads) for layer in model.encoder.layer]

    def bind(self, batch: Batch) -> Callable[[], Tensor]:
        """Pack, encode; the result stays packed."""
        if batch.ids.is_cuda:
            return self._captured(batch)
        lengths = batch.workload.lengths

        def call() -> Tensor:
            with torch.inference_mode():
                keep = batch.mask.flatten().nonzero().flatten()
                return self._encode(*self._select(batch, keep), lambda qkv: self._per_sequence(qkv, lengths))

        return call

    def valid(self, output: Tensor, batch: Batch) -> Tensor:
        """See the base class."""
        return output.float().cpu()

    def _select(self, batch: Batch, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        positions = torch.arange(batch.workload.padded, device=keep.device).repeat(batch.workload.batch)
        return tuple(t.flatten()[keep] for t in (batch.ids, batch.segments, positions))  # type: ignore[return-value]

    def _encode(self, ids: Tensor, segments: Tensor, positions: Tensor, attend: Attention) -> Tensor:
        table = self.embeddings
        x = table.word_embeddings(ids) + table.token_type_embeddings(segments) + table.position_embeddings(positions)
        x = table.LayerNorm(x)
        for layer in self.layers:
            x = layer(x, attend)
        return x

    def _per_sequence(self, qkv: Tensor, lengths: tuple[int, ...]) -> Tensor:
        parts = []
        for part in qkv.split(lengths):
            q, k, v = part.view(1, part.shape[0], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v)
            parts.append(attended.transpose(1, 2).reshape(part.shape[0], -1))
        return torch.cat(parts)

    def _captured(self, batch: Batch) -> Callable[[], Tensor]:
        from torch.nn.attention.varlen import varlen_attn

        lengths = torch.tensor(batch.workload.lengths, device=batch.ids.device)
        ends = F.pad(lengths.cumsum(0), (1, 0)).int()
        longest = max(batch.workload.lengths)

        def attend(qkv: Tensor) -> Tensor:
            q, k, v = qkv.view(qkv.shape[0], 3, self.heads, -1).unbind(1)
            return varlen_attn(q, k, v, ends, ends, longest, longest).reshape(qkv.shape[0], -1)

        with torch.no_grad():
            # Which tokens are valid, and where they stand, is worked out before the clock starts: this peer is spared
            # what ours does in every call. Looking up a token's segment is part of the encoder and stays in the graph.
            inputs = self._select(batch, batch.mask.flatten().nonzero().flatten())
            self._encode(*inputs, attend)  # first use loads modules, which may not happen while capturing
            torch.cuda.synchronize()
            # cuBLAS's workspace is then made anew, in memory that lives as long as this graph. Otherwise it may be an
            # earlier graph's, which goes back to the device when torch.compile captures; replays would still use it.
            torch._C._cuda_clearCublasWorkspaces()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = self._encode(*inputs, attend)

        def replay(_reads: object = (inputs, ends)) -> Tensor:  # a graph does not keep what it reads alive
            graph.replay()
            return output

        return replay


def _packs_bf16() -> bool:
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True


def _prepacked(weight: Tensor, bias: Tensor, activation: str) -> Linear:
    """oneDNN's product on a weight in oneDNN's own layout; PyTorch's plain fp32 product is MKL's."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    algorithm = "none" if activation == "gelu" else ""
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], algorithm)


def _rounded(weight: Tensor, bias: Tensor, activation: str) -> Linear:
    """oneDNN's product of 8-bit numbers; the input's range is taken anew at every call."""
    scales = weight.detach().float().abs().amax(1) / 127
    integers = (weight.detach().float() / scales[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(integers, None)
    zeros, offset = torch.zeros_like(scales, dtype=torch.int32), bias.detach().float()
    algorithm = "none" if activation == "gelu" else ""

    def call(x: Tensor) -> Tensor:
        rounded = torch.quantize_per_tensor_dynamic(x.float(), torch.quint8, False)
        given = rounded.int_repr(), rounded.q_scale(), rounded.q_zero_point()
        return torch.ops.onednn.qlinear_pointwise(
            *given, packed, scales, zeros, offset, 1.0, 0, x.dtype, activation, [], algorithm
        )

    return call


def _scaled(weight: Tensor, bias: Tensor, activation: str) -> Linear:
    """cuBLASLt's product of e4m3 with a scale per row on either side."""
    scales = weight.detach().float().abs().amax(1) / 448
    numbers = (weight.detach().float() / scales[:, None]).to(torch.float8_e4m3fn).t()
    rows, columns = torch.compile(_rows_of_e4m3, dynamic=True), scales[None].contiguous()

    def call(x: Tensor) -> Tensor:
        given, own = rows(x)
        y = torch._scaled_mm(
            given, numbers, scale_a=own, scale_b=columns, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return F.gelu(y) if activation == "gelu" else y

    return call


def _rows_of_e4m3(x: Tensor) -> tuple[Tensor, Tensor]:
    own = (x.float().abs().amax(-1, keepdim=True) / 448).clamp(min=1e-12)
    return (x.float() / own).to(torch.float8_e4m3fn), own


def _integers(weight: Tensor, bias: Tensor, activation: str) -> Linear:
    """cuBLASLt's product of integers, whose sums a second kernel scales."""
    scales = weight.detach().float().abs().amax(1) / 127
    numbers = (weight.detach().float() / scales[:, None]).round().to(torch.int8).t()
    rows, finish = torch.compile(_rows_of_integers, dynamic=True), torch.compile(_finished, dynamic=True)

    def call(x: Tensor) -> Tensor:
        given, own = rows(x)
        return finish(torch._int_mm(given, numbers), own, scales, bias, activation == "gelu")

    return call


def _rows_of_integers(x: Tensor) -> tuple[Tensor, Tensor]:
    own = (x.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
    return (x.float() / own).round().to(torch.int8), own


def _finished(sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    y = sums.float() * rows * columns + bias.float()
    return (F.gelu(y) if gelu else y).to(torch.bfloat16)


def _plain(weight: Tensor, bias: Tensor, activation: str) -> Linear:
    if activation == "gelu":
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)
