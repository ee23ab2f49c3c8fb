"""DeBERTa v2 and v3: disentangled attention, whose position projections are constants of a layer (arXiv:2006.03654)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from builder.errors import BuildError
from builder.families.family import BERT_LAYER, BERT_OUTSIDE, ClassificationNames, Family, FillMaskNames, State
from builder.families.spec import EncoderSpec

_RELATIVE = "encoder.rel_embeddings.weight"
_WORD, _LAYER = "embeddings.word_embeddings", "encoder.layer"


def _traits(config: Any) -> dict[str, Any]:
    """Scores are scaled by 1 / sqrt(head (1 + kinds of positions)), whether or not positions are relative."""
    if getattr(config, "conv_kernel_size", 0) > 0:
        raise BuildError(f"conv_kernel_size is {config.conv_kernel_size}: DeBERTa's convolution is not supported")
    kinds = [kind for kind in ("c2p", "p2c") if kind in (config.pos_att_type or [])]
    head = getattr(config, "attention_head_size", None) or config.hidden_size // config.num_attention_heads
    plain = {
        "head": head,
        "positions": "slot" if config.position_biased_input else "none",
        "types": int(config.type_vocab_size > 1),
    }
    if not config.relative_attention or not kinds:
        return {**plain, "scale": (head * (1 + len(kinds))) ** -0.5}
    distance = config.max_relative_positions
    return {
        **plain,
        "relative": "disentangled",
        "buckets": max(getattr(config, "position_buckets", -1), 0),
        "distance": config.max_position_embeddings if distance < 1 else distance,
        "c2p": int("c2p" in kinds),
        "p2c": int("p2c" in kinds),
    }


def _fold(state: State, spec: EncoderSpec) -> State:
    """Tables of the hidden width with the token type of one row in the words, and every layer's PK and PQ."""
    folded = {**state, **_tables(state, spec)}
    if spec.relative != "disentangled":
        return folded
    span = spec.buckets or spec.distance
    positions = state[_RELATIVE].float()
    if "encoder.LayerNorm.weight" in state:
        gamma, beta = (state[f"encoder.LayerNorm.{part}"].float() for part in ("weight", "bias"))
        positions = F.layer_norm(positions, positions.shape[-1:], gamma, beta, spec.epsilon)
    for layer in range(spec.layers):
        attention = f"{_LAYER}.{layer}.attention.self"
        for wanted, slot, own, shared in (
            (spec.c2p, "position_keys", "pos_key_proj", "key_proj"),
            (spec.p2c, "position_queries", "pos_query_proj", "query_proj"),
        ):
            if wanted:
                module = own if f"{attention}.{own}.weight" in state else shared
                folded[f"{_LAYER}.{layer}.{slot}"] = _projected(state, f"{attention}.{module}", positions[: 2 * span])
    return folded


def _projected(state: State, module: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{module}.weight"].float(), state[f"{module}.bias"].float())


def _tables(state: State, spec: EncoderSpec) -> State:
    """All that is added up before the first norm is linear, so that a projection behind it goes into the tables."""
    projection = state.get("embeddings.embed_proj.weight")
    tables = {}
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        rows = state.get(f"embeddings.{table}.weight")
        if rows is not None and projection is not None:
            rows = F.linear(rows.float(), projection.float())
        if rows is not None:
            tables[f"embeddings.{table}.weight"] = rows
    types = tables.get("embeddings.token_type_embeddings.weight")
    if types is not None and not spec.types:
        tables[f"{_WORD}.weight"] = tables[f"{_WORD}.weight"].float() + types[0].float()
    return tables


def _shape(family: Family, config: Any) -> Family:
    """The head of masked language models is one of two, as ``legacy`` says."""
    if getattr(config, "legacy", True):
        return family
    head = "lm_predictions.lm_head"
    names = FillMaskNames(f"{head}.dense", f"{head}.LayerNorm", f"deberta.{_WORD}", bias=f"{head}.bias")
    return replace(family, fill_mask=names)


DEBERTA = Family(
    prefix="deberta",
    classification=ClassificationNames("pooler.dense", "config.pooler_hidden_act", "classifier"),
    fill_mask=FillMaskNames(
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"
    ),
    layer={
        **BERT_LAYER,
        "qkv": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
    },
    outside=BERT_OUTSIDE,
    tensors={"position_keys": "position_keys", "position_queries": "position_queries"},
    traits=_traits,
    fold=_fold,
    shaped=_shape,
)
