"""BERT and those that compute as it does, apart from names, positions and heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builder.errors import BuildError
from builder.families.family import (
    BERT_LAYER,
    BERT_OUTSIDE,
    ClassificationNames,
    ConfigNames,
    Family,
    FillMaskNames,
    State,
)
from builder.families.spec import EncoderSpec

BERT = Family(
    prefix="bert",
    classification=ClassificationNames("bert.pooler.dense", "tanh", "classifier"),
    fill_mask=FillMaskNames(
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"
    ),
    pooler=True,
)
ROBERTA = Family(
    prefix="roberta",
    classification=ClassificationNames("classifier.dense", "tanh", "classifier.out_proj"),
    fill_mask=FillMaskNames("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "gelu"),
    positions="ids",
    pooler=True,
)
DISTILBERT = Family(
    prefix="distilbert",
    classification=ClassificationNames("pre_classifier", "relu", "classifier"),
    fill_mask=FillMaskNames("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    layer_prefix="transformer.layer",
    layer={
        "qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention_output": ("attention.out_lin",),
        "attention_norm": ("sa_layer_norm",),
        "intermediate": ("ffn.lin1",),
        "output": ("ffn.lin2",),
        "output_norm": ("output_layer_norm",),
    },
    config=ConfigNames("n_layers", "dim", "n_heads", "hidden_dim", "activation"),
    segments=False,
)
ELECTRA = Family(
    prefix="electra",
    classification=ClassificationNames("classifier.dense", "gelu", "classifier.out_proj"),
    fill_mask=FillMaskNames(
        "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "gelu"
    ),
    outside={**BERT_OUTSIDE, "projection": ("embeddings_project",)},
)
PRELAYERNORM = replace(
    ROBERTA,
    prefix="roberta_prelayernorm",
    layer={**BERT_LAYER, "attention_norm": ("attention.LayerNorm",), "output_norm": ("intermediate.LayerNorm",)},
    outside={**BERT_OUTSIDE, "final_norm": ("LayerNorm",)},
    norm="pre",
)


def _task_types(state: State, spec: EncoderSpec) -> State:
    """Every request is of task type 0 where none is given, as transformers has it: its row joins the segments'."""
    tasks = state.get("embeddings.task_type_embeddings.weight")
    if tasks is None:
        return state
    name = "embeddings.token_type_embeddings.weight"
    return {**state, name: state[name].float() + tasks[0].float()}


ERNIE = replace(BERT, prefix="ernie", classification=ClassificationNames("ernie.pooler.dense", "tanh", "classifier"),
                fold=_task_types)  # fmt: skip

MPNET_BUCKETS, MPNET_DISTANCE = 32, 128
"""transformers computes with these whatever ``relative_attention_num_buckets`` says."""
_MPNET_PAD = 1


def _mpnet_traits(config: Any) -> dict[str, Any]:
    if config.relative_attention_num_buckets < MPNET_BUCKETS:
        raise BuildError(
            f"relative_attention_num_buckets is {config.relative_attention_num_buckets}; MPNet looks into "
            f"{MPNET_BUCKETS} buckets"
        )
    relative = {"relative": "buckets", "buckets": MPNET_BUCKETS, "distance": MPNET_DISTANCE}
    return {"pad": _MPNET_PAD, "types": 0, **relative}


def _mpnet_fold(state: State, spec: EncoderSpec) -> State:
    return {**state, "relative": state["encoder.relative_attention_bias.weight"][:MPNET_BUCKETS]}


MPNET = Family(
    prefix="mpnet",
    classification=ClassificationNames("classifier.dense", "tanh", "classifier.out_proj"),
    fill_mask=FillMaskNames("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "gelu"),
    layer={
        **BERT_LAYER,
        "qkv": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attention_output": ("attention.attn.o",),
        "attention_norm": ("attention.LayerNorm",),
    },
    tensors={"relative": "relative"},
    segments=False,
    positions="ids",
    traits=_mpnet_traits,
    fold=_mpnet_fold,
    pooler=True,
)


def _albert_traits(config: Any) -> dict[str, Any]:
    """Layer l of num_hidden_layers runs all members of its group, one behind the other."""
    if config.embedding_size == config.hidden_size:
        raise BuildError(
            f"embedding_size {config.embedding_size} is hidden_size, with a projection between them; "
            "ALBERT is served where the two differ"
        )
    layers, groups, members = config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num
    if groups > layers:
        raise BuildError(f"num_hidden_groups {groups} is more than num_hidden_layers {layers}: some are never used")
    chosen = [int(layer / (layers / groups)) for layer in range(layers)]
    layer_of = [group * members + member for group in chosen for member in range(members)]
    return {"layers": len(layer_of), "layer_of": tuple(layer_of), "embedding": config.embedding_size}


def _albert_shape(family: Family, config: Any) -> Family:
    return replace(family, members=config.inner_group_num)


ALBERT = Family(
    prefix="albert",
    classification=ClassificationNames("albert.pooler", "tanh", "classifier"),
    fill_mask=FillMaskNames("predictions.dense", "predictions.LayerNorm", "predictions.decoder"),
    layer_prefix="encoder.albert_layer_groups.{0}.albert_layers.{1}",
    layer={
        "qkv": ("attention.query", "attention.key", "attention.value"),
        "attention_output": ("attention.dense",),
        "attention_norm": ("attention.LayerNorm",),
        "intermediate": ("ffn",),
        "output": ("ffn_output",),
        "output_norm": ("full_layer_layer_norm",),
    },
    outside={**BERT_OUTSIDE, "projection": ("encoder.embedding_hidden_mapping_in",)},
    pooler=True,
    traits=_albert_traits,
    shaped=_albert_shape,
)
