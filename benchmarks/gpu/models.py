"""The encoders that are timed: ours and its peers, on one set of random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.workloads import Size
from builder.encoder import PackedEncoder, pack
from builder.families import family_of, shape_of

Encode = Callable[[], Tensor]


@dataclass(frozen=True)
class Encoders:
    """One set of weights as transformers' BertModel and as the packed encoder, on the GPU in one type."""

    plain: Any
    packed: PackedEncoder
    size: Size


def build(size: Size, dtype: torch.dtype) -> Encoders:
    """Random weights: time does not depend on them, accuracy is checked elsewhere."""
    config = transformers.BertConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.BertModel(config, add_pooling_layer=False).eval()
    shape = shape_of(config)
    weights = pack(model.state_dict(), family_of(config), shape, dtype)
    packed = PackedEncoder(shape, weights, "hidden").cuda()
    packed.matrices = torch.ops.efft.prepare(
        packed.matrices, shape.layers, shape.hidden, shape.embedding, shape.intermediate, packed.vectors
    )
    return Encoders(model.to(dtype), packed, size)


def ours(encoders: Encoders, ids: Tensor, mask: Tensor) -> Encode:
    """From padded ids to padded hidden states, padding removed and restored on the device."""
    segments = torch.zeros_like(ids)
    return lambda: encoders.packed(ids, segments, mask)


def torchscript(encoders: Encoders, ids: Tensor, mask: Tensor) -> Encode:
    """The traced and frozen transformers model on the padded batch, as stock TorchServe would run it."""
    with torch.no_grad():
        traced = torch.jit.trace(_HiddenStates(encoders.plain), (ids, mask), check_trace=False).eval()
        frozen = torch.jit.freeze(traced)

    def call() -> Tensor:
        with torch.no_grad():
            return frozen(ids, mask)

    return call


def compiled(encoders: Encoders, ids: Tensor, mask: Tensor) -> Encode:
    """torch.compile with CUDA graphs on the padded batch, for its one shape."""
    model = torch.compile(_HiddenStates(encoders.plain), mode="reduce-overhead", dynamic=False)

    def call() -> Tensor:
        with torch.no_grad():
            return model(ids, mask)

    return call


def packed_torch(encoders: Encoders, ids: Tensor, mask: Tensor) -> Encode:
    """What a PyTorch expert writes: packed tokens, fused QKV, torch's variable-length attention.

    Which rows are valid is worked out before the clock starts, and the result stays packed [T, H]: the peer is spared
    what ours does on the device.
    """
    import torch.nn.attention.varlen as varlen

    model, size = encoders.plain, encoders.size
    rows = mask.flatten().nonzero().flatten()
    lengths = mask.sum(1)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    packed_ids, positions = ids.flatten()[rows], rows % ids.shape[1]
    layers = [_fused_qkv(layer) for layer in model.encoder.layer]
    table = model.embeddings

    @torch.no_grad()
    def call() -> Tensor:
        total = table.word_embeddings(packed_ids) + table.position_embeddings(positions)
        x = table.LayerNorm(total + table.token_type_embeddings.weight[0])
        for layer, weight, bias in layers:
            q, k, v = F.linear(x, weight, bias).view(-1, 3, size.heads, 64).unbind(1)
            attended: Any = varlen.varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
            output = layer.attention.output
            x = output.LayerNorm(output.dense(attended.view(-1, size.hidden)) + x)
            x = layer.output.LayerNorm(layer.output.dense(F.gelu(layer.intermediate.dense(x))) + x)
        return x

    return call


def _fused_qkv(layer: Any) -> tuple[Any, Tensor, Tensor]:
    parts = [getattr(layer.attention.self, name) for name in ("query", "key", "value")]
    return layer, torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])


class _HiddenStates(nn.Module):
    """A model whose result is the last hidden state alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The hidden states [B, S, H]."""
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state
