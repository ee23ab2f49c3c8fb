"""Encoders with rotary positions: ModernBERT, EuroBERT, Nomic, GTE, Jina v3, RoFormer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from builder.errors import BuildError
from builder.families.classic import BERT, ROBERTA
from builder.families.family import (
    BERT_OUTSIDE,
    ClassificationNames,
    ConfigNames,
    Family,
    FillMaskNames,
    State,
    TokenNames,
)
from builder.families.rotary import rotary_traits
from builder.families.spec import EncoderSpec

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _modernbert_traits(config: Any) -> dict[str, Any]:
    """Windows: a key counts where |i - j| <= local_attention // 2 (arXiv:2412.13663)."""
    kinds = set(config.layer_types)
    if not kinds <= {_FULL, _SLIDING}:
        raise BuildError(f"layer_types {', '.join(sorted(kinds - {_FULL, _SLIDING}))} are not supported")
    head = config.hidden_size // config.num_attention_heads
    rotary = {kind: rotary_traits(config, head, kind) for kind in sorted(kinds)}
    if len({traits.get("scale") for traits in rotary.values()}) > 1:
        raise BuildError("rotary positions that lengthen local and global layers' products apart are not supported")
    local = "".join("1" if kind == _SLIDING else "0" for kind in config.layer_types)
    window = {"window": config.local_attention // 2, "local": local} if _SLIDING in kinds else {}
    return {"types": 0, "first_norm": 0, "gated": 1, **next(iter(rotary.values())), **window}


def _modernbert_fold(state: State, spec: EncoderSpec) -> State:
    """A model of local layers alone has one kind of frequencies, which then are those of its only table."""
    full, local = (state.get(f"rotary_emb.{kind}_inv_freq") for kind in (_FULL, _SLIDING))
    made = {"rotary": local if full is None else full, "rotary_local": local}
    return {**state, **{name: tensor for name, tensor in made.items() if tensor is not None}}


_MODERNBERT_HEAD = {"dense": "head.dense", "activation": "config.classifier_activation", "norm": "head.norm"}
MODERNBERT = Family(
    prefix="model",
    classification=ClassificationNames(**_MODERNBERT_HEAD, out="classifier", pooling="config.classifier_pooling"),
    fill_mask=FillMaskNames(**_MODERNBERT_HEAD, decoder="decoder"),
    tokens=TokenNames(**_MODERNBERT_HEAD, out="classifier"),
    answers=TokenNames(**_MODERNBERT_HEAD, out="classifier"),
    layer_prefix="layers",
    layer={
        "qkv": ("attn.Wqkv",),
        "attention_output": ("attn.Wo",),
        "attention_norm": ("attn_norm",),
        "intermediate": ("mlp.Wi",),
        "output": ("mlp.Wo",),
        "output_norm": ("mlp_norm",),
    },
    outside={
        "word": ("embeddings.tok_embeddings",),
        "embedding_norm": ("embeddings.norm",),
        "final_norm": ("final_norm",),
    },
    tensors={"rotary": "rotary", "rotary_local": "rotary_local"},
    config=ConfigNames(activation="hidden_activation", epsilon="norm_eps"),
    segments=False,
    norm="pre",
    positions="none",
    bare=True,
    traits=_modernbert_traits,
    fold=_modernbert_fold,
)


def _eurobert_traits(config: Any) -> dict[str, Any]:
    head = config.head_dim
    return {
        "types": 0,
        "embedding_norm": 0,
        "normalise": "rms",
        "gated": 1,
        "head": head,
        "kv_heads": config.num_key_value_heads,
        **rotary_traits(config, head),
    }


_SELF_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
_ROTARY = {"rotary": "rotary_emb.inv_freq"}
EUROBERT = Family(
    prefix="model",
    classification=ClassificationNames("dense", "gelu", "classifier", pooling="config.classifier_pooling"),
    fill_mask=FillMaskNames("", "", "lm_head"),
    layer_prefix="layers",
    layer={
        "qkv": _SELF_ATTENTION,
        "attention_output": ("self_attn.o_proj",),
        "attention_norm": ("input_layernorm",),
        "intermediate": _GATED,
        "output": ("mlp.down_proj",),
        "output_norm": ("post_attention_layernorm",),
    },
    outside={"word": ("embed_tokens",), "final_norm": ("norm",)},
    tensors=_ROTARY,
    config=ConfigNames(epsilon="rms_norm_eps"),
    segments=False,
    norm="pre",
    positions="none",
    bare=True,
    traits=_eurobert_traits,
)


def _types(config: Any) -> dict[str, int]:
    """A table of one row is added to the words when the archive is built."""
    return {} if config.type_vocab_size > 1 else {"types": 0}


def join_types(state: State, spec: EncoderSpec) -> State:
    """The words with the only row of token types added, where the spec has no table for them."""
    types = state.get("embeddings.token_type_embeddings.weight")
    if types is None or spec.types:
        return state
    name = "embeddings.word_embeddings.weight"
    return {**state, name: state[name].float() + types[0].float()}


def _post_traits(config: Any) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"head": head, **_types(config), **rotary_traits(config, head)}


_POST_LAYER = {
    "qkv": _SELF_ATTENTION,
    "attention_output": ("self_attn.o_proj",),
    "attention_norm": ("post_attention_layernorm",),
    "intermediate": ("mlp.fc1",),
    "output": ("mlp.fc2",),
    "output_norm": ("post_mlp_layernorm",),
}
JINA = replace(
    ROBERTA,
    layer_prefix="layers",
    layer=_POST_LAYER,
    tensors=_ROTARY,
    positions="none",
    bare=True,
    traits=_post_traits,
    fold=join_types,
)
NOMIC = replace(
    BERT,
    prefix="nomic_bert",
    classification=ClassificationNames("nomic_bert.pooler.dense", "tanh", "classifier"),
    fill_mask=FillMaskNames(
        "cls.predictions.transform.dense", "cls.predictions.transform.layer_norm", "cls.predictions.decoder"
    ),
    layer_prefix="layers",
    layer={**_POST_LAYER, "intermediate": _GATED, "output": ("mlp.down_proj",)},
    tensors=_ROTARY,
    positions="none",
    bare=True,
    pooler=False,
    traits=lambda config: {"gated": 1, **_post_traits(config)},
    fold=join_types,
)
GTE = replace(
    NOMIC,
    prefix="gte",
    classification=ClassificationNames("gte.pooler.dense", "tanh", "classifier"),
    fill_mask=FillMaskNames("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "gelu"),
)


def _roformer_traits(config: Any) -> dict[str, Any]:
    if config.rotary_value:
        raise BuildError("rotary_value is set: values that are rotated as queries and keys are not supported")
    return {"rotary": "interleaved", "embedding": config.embedding_size, **_types(config)}


def _roformer_fold(state: State, spec: EncoderSpec) -> State:
    """The frequencies of transformers' table of sines and cosines, and what fp32 leaves of them."""
    size = spec.head_size
    exact = 10000.0 ** (-2 * torch.arange(size // 2, dtype=torch.float64) / size)
    return {**join_types(state, spec), "rotary": torch.cat([exact.float(), (exact - exact.float()).float()])}


ROFORMER = replace(
    BERT,
    prefix="roformer",
    classification=ClassificationNames("classifier.dense", "config.hidden_act", "classifier.out_proj"),
    outside={**BERT_OUTSIDE, "projection": ("embeddings_project",)},
    tensors={"rotary": "rotary"},
    positions="none",
    pooler=False,
    traits=_roformer_traits,
    fold=_roformer_fold,
)
