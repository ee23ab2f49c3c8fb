"""The checkpoint families, one row each: weight names, position scheme and head shapes.

A family is data, not a class: what differs between BERT, RoBERTa, DistilBERT, ELECTRA, XLM-RoBERTa and CamemBERT is
what their authors called the same tensors. Names are those of transformers' ``state_dict()``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from builder.errors import BuildError
from builder.families.spec import EncoderSpec

__all__ = ["ACTIVATIONS", "FAMILIES", "EncoderSpec", "Family", "family_of", "max_positions", "spec_of"]


Modules = Mapping[str, tuple[str, ...]]
"""A weight slot's name (``kernels/include/efft/weights.h``) -> the modules stacked in it, each with ``.weight`` and,
but for the tables, ``.bias``."""

_BERT_LAYER: Modules = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "intermediate": ("intermediate.dense",),
    "output": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}
_BERT_OUTSIDE: Modules = {
    "word": ("embeddings.word_embeddings",),
    "position": ("embeddings.position_embeddings",),
    "segment": ("embeddings.token_type_embeddings",),
    "embedding_norm": ("embeddings.LayerNorm",),
}


@dataclass(frozen=True)
class ConfigNames:
    """Attributes of the transformers config that hold the encoder's sizes."""

    layers: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    intermediate: str = "intermediate_size"
    activation: str = "hidden_act"


@dataclass(frozen=True)
class ClassificationNames:
    """A sequence classifier's head: ``out(activation(dense(first token)))``, names from the model's root."""

    dense: str
    activation: str
    out: str


@dataclass(frozen=True)
class FillMaskNames:
    """A masked-language-model head: ``decoder(norm(activation(dense(hidden))))``, names from the model's root."""

    dense: str
    norm: str
    decoder: str
    activation: str = ""
    """Empty: the encoder's own activation."""


@dataclass(frozen=True)
class Family:
    """One row of the table. ``prefix`` is the encoder's attribute on a model with a head."""

    prefix: str
    classification: ClassificationNames
    fill_mask: FillMaskNames
    layer_prefix: str = "encoder.layer"
    layer: Modules = field(default_factory=lambda: _BERT_LAYER)
    """Names relative to a layer."""
    outside: Modules = field(default_factory=lambda: _BERT_OUTSIDE)
    """Names outside the layers."""
    config: ConfigNames = field(default_factory=ConfigNames)
    segments: bool = True
    """Whether the family has a segment (token type) table at all."""
    norm: str = "post"
    positions: str = "slot"
    """As EncoderSpec has it; ``ids`` is RoBERTa's scheme, which counts from the padding id."""

    def modules(self, slot: str, layer: int) -> tuple[str, ...]:
        """The modules of a slot's weights; ``slot`` as in EncoderSpec's layout, less its part; layer -1: outside."""
        if layer < 0:
            return self.outside[slot]
        local = slot.partition(".")[2]
        return tuple(f"{self.layer_prefix}.{layer}.{name}" for name in self.layer[local])


_BERT = Family(
    prefix="bert",
    classification=ClassificationNames("bert.pooler.dense", "tanh", "classifier"),
    fill_mask=FillMaskNames(
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"
    ),
)
_ROBERTA = Family(
    prefix="roberta",
    classification=ClassificationNames("classifier.dense", "tanh", "classifier.out_proj"),
    fill_mask=FillMaskNames("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "gelu"),
    positions="ids",
)
_DISTILBERT = Family(
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
_ELECTRA = Family(
    prefix="electra",
    classification=ClassificationNames("classifier.dense", "gelu", "classifier.out_proj"),
    fill_mask=FillMaskNames(
        "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "gelu"
    ),
    outside={**_BERT_OUTSIDE, "projection": ("embeddings_project",)},
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "roberta-prelayernorm": replace(
        _ROBERTA,
        prefix="roberta_prelayernorm",
        layer={
            **_BERT_LAYER,
            "attention_norm": ("attention.LayerNorm",),
            "output_norm": ("intermediate.LayerNorm",),
        },
        outside={**_BERT_OUTSIDE, "final_norm": ("LayerNorm",)},
        norm="pre",
    ),
}
"""By ``config.model_type``."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
"""transformers' activation names to the operators'."""


def family_of(config: Any) -> Family:
    """The row for a transformers config. Raises BuildError for a model type that is not in the table."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BuildError(f"model type {config.model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    return family


def spec_of(config: Any) -> EncoderSpec:
    """Read the encoder off a transformers config. Raises BuildError for what the kernels cannot run."""
    family = family_of(config)
    hidden, heads = getattr(config, family.config.hidden), getattr(config, family.config.heads)
    activation = getattr(config, family.config.activation)
    if activation not in ACTIVATIONS:
        raise BuildError(f"activation {activation!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}")
    if heads < 1 or hidden % heads or (hidden // heads) % 2 or hidden // heads > 128:
        raise BuildError(f"head size {hidden}/{heads} is not supported; it must be even and at most 128")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise BuildError(f"position embeddings of type {config.position_embedding_type!r} are not supported")
    spec = EncoderSpec(
        layers=getattr(config, family.config.layers),
        hidden=hidden,
        heads=heads,
        intermediate=getattr(config, family.config.intermediate),
        embedding=getattr(config, "embedding_size", None) if "projection" in family.outside else None,
        activation=ACTIVATIONS[activation],
        norm=family.norm,
        epsilon=float(getattr(config, "layer_norm_eps", 1e-12)),
        positions=family.positions,
        pad=_pad_of(config) if family.positions == "ids" else None,
    )
    if config.max_position_embeddings <= spec.first_position:
        raise BuildError(
            f"max_position_embeddings {config.max_position_embeddings} leaves no position for a token: "
            f"{config.model_type} begins behind pad_token_id {spec.pad}"
        )
    return spec


def _pad_of(config: Any) -> int:
    """The id that positions are counted from. transformers itself cannot run such a model without one."""
    if config.pad_token_id is None:
        raise BuildError(f"pad_token_id is missing from config.json; {config.model_type} counts positions from it")
    return int(config.pad_token_id)


def max_positions(config: Any) -> int:
    """The longest sequence, in tokens with special ones, that the position table covers."""
    return int(config.max_position_embeddings) - spec_of(config).first_position
