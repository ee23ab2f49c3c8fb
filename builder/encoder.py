"""The padding-free encoder: a checkpoint's encoder weights packed into two arenas behind one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from builder.errors import BuildError
from builder.families import EncoderShape, Family, LayerNames


class PackedEncoder(nn.Module):
    """``torch.ops.efft.encoder`` with its weights.

    ``forward(ids, segments, mask)`` takes int64 [B, S] and returns, in the compute type, every token's last hidden
    state [B, S, H] (``output="hidden"``, zeros on pads), the first token's [B, H] (``"first"``) or the mean over
    the valid tokens [B, H] (``"mean"``). Technique: padding removal as in "Effective Transformer" (ByteDance, 2020).
    """

    word: Tensor
    position: Tensor
    segment: Tensor
    matrices: Tensor
    vectors: Tensor

    def __init__(self, shape: EncoderShape, weights: PackedWeights, output: str) -> None:
        super().__init__()
        self.shape = shape
        self.output = output
        self.register_buffer("word", weights.word)
        self.register_buffer("position", weights.position)
        self.register_buffer("segment", weights.segment)
        self.register_buffer("matrices", weights.matrices)
        self.register_buffer("vectors", weights.vectors)

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """Encode a padded batch; see the class."""
        return encode(self.shape, self, (ids, segments, mask), self.output)


def encode(shape: EncoderShape, weights: Any, inputs: tuple[Tensor, Tensor, Tensor], output: str) -> Tensor:
    """Call the operator on ids, segments and mask, int64 [B, S]; for ``output`` see PackedEncoder.

    ``weights`` carries the tables and arenas by their names: a module, a loaded one, or PackedWeights.
    """
    s = shape
    return torch.ops.efft.encoder(
        *inputs, weights.word, weights.position, weights.segment, weights.matrices, weights.vectors,
        s.layers, s.hidden, s.heads, s.intermediate, s.activation, s.pre_norm, s.epsilon, s.position_offset,
        s.count_positions, output,
    )  # fmt: skip


def prepare(shape: EncoderShape, matrices: Tensor, vectors: Tensor) -> Tensor:
    """A plain or 8-bit matrix arena in the form the operator likes best."""
    s = shape
    return torch.ops.efft.prepare(matrices, s.layers, s.hidden, s.embedding, s.intermediate, vectors)


@dataclass(frozen=True)
class PackedWeights:
    """The embedding tables [rows, E] and ``matrices`` in the compute type, ``vectors`` in fp32.

    The arenas' order is that of ``kernels/include/efft/encoder.h``.
    """

    word: Tensor
    position: Tensor
    segment: Tensor
    matrices: Tensor
    vectors: Tensor


def pack(state: Mapping[str, Tensor], family: Family, shape: EncoderShape, dtype: torch.dtype) -> PackedWeights:
    """Pack an encoder's ``state_dict`` (names without the model's prefix).

    Raises BuildError naming the first weight that is missing or has another shape than the config says.
    """
    read = _Reader(state)
    table = family.embeddings
    word = read(f"{table}.word_embeddings.weight")
    width = (shape.embedding,)
    segment_name = f"{table}.token_type_embeddings.weight"
    segment = read(segment_name) if family.segments else torch.zeros(1, shape.embedding)
    vectors = [read(f"{table}.LayerNorm.weight", width), read(f"{table}.LayerNorm.bias", width)]
    matrices = []
    if shape.projects:
        matrices.append(read(f"{family.projection}.weight", (shape.hidden, shape.embedding)))
        vectors.append(read(f"{family.projection}.bias", (shape.hidden,)))
    for index in range(shape.layers):
        layer_matrices, layer_vectors = _layer(read, f"{family.layer_prefix}.{index}", family.layer, shape)
        matrices += layer_matrices
        vectors += layer_vectors
    if shape.pre_norm:
        vectors += [read(f"{family.final_norm}.{part}", (shape.hidden,)) for part in ("weight", "bias")]
    return PackedWeights(
        word=word.to(dtype),
        position=read(f"{table}.position_embeddings.weight").to(dtype),
        segment=segment.to(dtype),
        matrices=torch.cat([m.reshape(-1).to(dtype) for m in matrices]),
        vectors=torch.cat([v.float() for v in vectors]),
    )


class _Reader:
    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def __call__(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        if name not in self.state:
            raise BuildError(f"the checkpoint has no weight {name!r}; is it of another family than its config says?")
        weight = self.state[name].detach()
        if shape is not None and tuple(weight.shape) != shape:
            raise BuildError(f"weight {name!r} has shape {tuple(weight.shape)}, the config says {shape}")
        return weight


def _layer(read: _Reader, prefix: str, names: LayerNames, shape: EncoderShape) -> tuple[list[Tensor], list[Tensor]]:
    h, i = shape.hidden, shape.intermediate
    attention = [f"{prefix}.{name}" for name in (names.query, names.key, names.value)]
    matrices = [read(f"{name}.weight", (h, h)) for name in attention]
    vectors = [read(f"{name}.bias", (h,)) for name in attention]

    def linear(name: str, outputs: int, inputs: int) -> None:
        matrices.append(read(f"{prefix}.{name}.weight", (outputs, inputs)))
        vectors.append(read(f"{prefix}.{name}.bias", (outputs,)))

    def norm(name: str) -> None:
        vectors.extend(read(f"{prefix}.{name}.{part}", (h,)) for part in ("weight", "bias"))

    linear(names.attention_output, h, h)
    norm(names.attention_norm)
    linear(names.intermediate, i, h)
    linear(names.output, h, i)
    norm(names.output_norm)
    return matrices, vectors
