"""Families whose files name the weights otherwise than the loaded model does, and stack what it has apart.

transformers converts them when it loads a folder (its ``conversion_mapping``); here every tensor is accounted for
before it is given any, so the same is done first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from builder.errors import BuildError


@dataclass(frozen=True)
class _Disk:
    """``renamed``: parts of names by patterns, in order. ``split``: modules whose rows are those of several."""

    renamed: tuple[tuple[str, str], ...]
    split: tuple[tuple[str, tuple[str, ...]], ...]


_SELF_ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkv")
_NORMS = ((r"\bnorm1\b", "post_attention_layernorm"), (r"\bnorm2\b", "post_mlp_layernorm"))
_LAYERS = ((r"\bencoder\.layers\.", "layers."), (r"\bemb_ln\b", "embeddings.LayerNorm"))
_DISKS = {
    "nomic_bert": _Disk(
        (
            (r"^bert\.", "nomic_bert."), *_LAYERS, *_NORMS, (r"\battn\.out_proj\b", "self_attn.o_proj"),
            (r"\bfc11\b", "up_proj"), (r"\bfc12\b", "gate_proj"), (r"\bfc2\b", "down_proj"),
        ),
        (("attn.Wqkv", _SELF_ATTENTION),),
    ),
    "gte": _Disk(
        (
            (r"^new\.", "gte."), (r"\bencoder\.layer\.", "layers."), (r"\battention\.o_proj\b", "self_attn.o_proj"),
            (r"\battn_ln\b", "post_attention_layernorm"), (r"\bmlp_ln\b", "post_mlp_layernorm"),
            (r"\blm_head\.norm\b", "lm_head.layer_norm"),
        ),
        (("attention.qkv_proj", _SELF_ATTENTION), ("mlp.up_gate_proj", ("mlp.up_proj", "mlp.gate_proj"))),
    ),
    "jina_embeddings_v3": _Disk(
        (*_LAYERS, *_NORMS, (r"\bmixer\.out_proj\b", "self_attn.o_proj")), (("mixer.Wqkv", _SELF_ATTENTION),)
    ),
    "esm": _Disk(
        # transformers saves one copy under a name with an asterisk, and older versions one for each layer.
        ((r"\bencoder\.layer\.(\*|0)\.attention\.self\.(?=rotary_embeddings\.inv_freq$)", ""),), ()
    ),
}  # fmt: skip
_EXTRA = {"esm": re.compile(r"\.attention\.self\.rotary_embeddings\.inv_freq$")}
"""Further copies of what has a place."""


def as_loaded(state: Mapping[str, Tensor], model_type: str, source: str) -> dict[str, Tensor]:
    """A file's tensors by the names of the loaded model, split where that has several.

    Raises BuildError for a tensor that cannot be split so.
    """
    disk = _DISKS.get(model_type)
    if disk is None:
        return dict(state)
    extra = _EXTRA.get(model_type)
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in disk.renamed:
            new = re.sub(pattern, replacement, new)
        if extra is None or not extra.search(new):
            made.update(_split(new, tensor, disk, f"{source}: weight {name!r}"))
    return made


def _split(name: str, tensor: Tensor, disk: _Disk, what: str) -> dict[str, Tensor]:
    for module, targets in disk.split:
        head, found, tail = name.partition(f"{module}.")
        if found:
            if not tensor.dim() or tensor.shape[0] % len(targets):
                raise BuildError(f"{what} is {list(tensor.shape)}, which is not {len(targets)} of one size")
            pieces = tensor.chunk(len(targets))
            return {f"{head}{target}.{tail}": piece for target, piece in zip(targets, pieces, strict=True)}
    return {name: tensor}
