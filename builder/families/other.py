"""T5's encoder and ESM, the language model of proteins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builder.errors import BuildError
from builder.families.classic import ROBERTA
from builder.families.family import BERT_LAYER, BERT_OUTSIDE, ConfigNames, Family, FillMaskNames

_T5_LENGTH = 512
"""Tokens that the published models were trained with; the config of a checkpoint may say another ``n_positions``."""


def _t5_traits(config: Any) -> dict[str, Any]:
    return {
        "types": 0,
        "embedding_norm": 0,
        "normalise": "rms",
        "gated": int(config.is_gated_act),
        "head": config.d_kv,
        "scale": 1.0,
        "relative": "buckets",
        "buckets": config.relative_attention_num_buckets,
        "distance": config.relative_attention_max_distance,
    }


def _t5_shape(family: Family, config: Any) -> Family:
    first = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
    return replace(
        family,
        layer={**family.layer, "intermediate": tuple(f"layer.1.DenseReluDense.{name}" for name in first)},
        length=getattr(config, "n_positions", None) or _T5_LENGTH,
    )


T5 = Family(
    prefix="transformer",
    classification=None,
    fill_mask=None,
    answers=None,
    layer_prefix="encoder.block",
    layer={
        "qkv": tuple(f"layer.0.SelfAttention.{name}" for name in "qkv"),
        "attention_output": ("layer.0.SelfAttention.o",),
        "attention_norm": ("layer.0.layer_norm",),
        "output": ("layer.1.DenseReluDense.wo",),
        "output_norm": ("layer.1.layer_norm",),
    },
    outside={"word": ("shared",), "final_norm": ("encoder.final_layer_norm",)},
    tensors={"relative": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
    config=ConfigNames("num_layers", "d_model", "num_heads", "d_ff", "dense_act_fn", "layer_norm_epsilon"),
    segments=False,
    norm="pre",
    positions="none",
    bare=True,
    traits=_t5_traits,
    shaped=_t5_shape,
)


def _esm_traits(config: Any) -> dict[str, Any]:
    if config.is_folding_model:
        raise BuildError("ESMFold is not supported, only ESM's language models")
    dropped = {}
    if config.token_dropout:
        if config.mask_token_id is None:
            raise BuildError("mask_token_id is missing from config.json; token_dropout scales by its share")
        dropped = {"dropout_token": config.mask_token_id}
    plain = {"types": 0, "embedding_norm": int(bool(config.emb_layer_norm_before)), **dropped}
    kind = config.position_embedding_type
    if kind == "rotary":
        return {**plain, "positions": "none", "rotary": "halves"}
    if kind != "absolute":
        raise BuildError(f"position embeddings of type {kind!r} are not supported")
    return plain


ESM = replace(
    ROBERTA,
    prefix="esm",
    fill_mask=FillMaskNames("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "gelu", bias="lm_head.bias"),
    layer={
        **BERT_LAYER,
        "attention_norm": ("attention.LayerNorm",),
        "output_norm": ("LayerNorm",),
    },
    outside={
        **BERT_OUTSIDE,
        "embedding_norm": ("embeddings.layer_norm",),
        "final_norm": ("encoder.emb_layer_norm_after",),
    },
    tensors={"rotary": "rotary_embeddings.inv_freq"},
    segments=False,
    norm="pre",
    traits=_esm_traits,
)
