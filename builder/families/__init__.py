"""The checkpoint families, one row each: weight names, position scheme and head shapes.

A family is data, not a class: what differs between BERT, RoBERTa, DistilBERT, ELECTRA, XLM-RoBERTa and CamemBERT is
what their authors called the same tensors. Names are those of transformers' ``state_dict()``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from builder.errors import BuildError


@dataclass(frozen=True)
class LayerNames:
    """Names of one layer's modules, relative to the layer; each has ``.weight`` and ``.bias``."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    intermediate: str = "intermediate.dense"
    output: str = "output.dense"
    output_norm: str = "output.LayerNorm"


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
    layer: LayerNames = field(default_factory=LayerNames)
    config: ConfigNames = field(default_factory=ConfigNames)
    embeddings: str = "embeddings"
    segments: bool = True
    """Whether the family has a segment (token type) table at all."""
    projection: str = ""
    """The linear layer between embedding and encoder where their sizes differ."""
    positions_follow_padding: bool = False
    """RoBERTa's scheme: positions count tokens and begin at padding id + 1."""
    pre_norm: bool = False
    final_norm: str = ""


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
    positions_follow_padding=True,
)
_DISTILBERT = Family(
    prefix="distilbert",
    classification=ClassificationNames("pre_classifier", "relu", "classifier"),
    fill_mask=FillMaskNames("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    layer_prefix="transformer.layer",
    layer=LayerNames(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        intermediate="ffn.lin1",
        output="ffn.lin2",
        output_norm="output_layer_norm",
    ),
    config=ConfigNames("n_layers", "dim", "n_heads", "hidden_dim", "activation"),
    segments=False,
)
_ELECTRA = Family(
    prefix="electra",
    classification=ClassificationNames("classifier.dense", "gelu", "classifier.out_proj"),
    fill_mask=FillMaskNames(
        "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "gelu"
    ),
    projection="embeddings_project",
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
        layer=replace(LayerNames(), attention_norm="attention.LayerNorm", output_norm="intermediate.LayerNorm"),
        pre_norm=True,
        final_norm="LayerNorm",
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


@dataclass(frozen=True)
class EncoderShape:
    """The sizes and options the encoder operator is called with; the twin of ``kernels/include/efft/encoder.h``."""

    layers: int
    hidden: int
    embedding: int
    heads: int
    intermediate: int
    activation: str
    pre_norm: bool
    epsilon: float
    position_offset: int
    count_positions: bool

    @property
    def projects(self) -> bool:
        """Whether a projection stands between embedding and encoder."""
        return self.embedding != self.hidden


def family_of(config: Any) -> Family:
    """The row for a transformers config. Raises BuildError for a model type that is not in the table."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BuildError(f"model type {config.model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    return family


def shape_of(config: Any) -> EncoderShape:
    """Read the encoder's shape off a transformers config. Raises BuildError for what the kernels cannot run."""
    family = family_of(config)
    hidden, heads = getattr(config, family.config.hidden), getattr(config, family.config.heads)
    activation = getattr(config, family.config.activation)
    if activation not in ACTIVATIONS:
        raise BuildError(f"activation {activation!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}")
    if hidden % heads or (hidden // heads) % 2 or hidden // heads > 128:
        raise BuildError(f"head size {hidden}/{heads} is not supported; it must be even and at most 128")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise BuildError(f"position embeddings of type {config.position_embedding_type!r} are not supported")
    follows = family.positions_follow_padding
    return EncoderShape(
        layers=getattr(config, family.config.layers),
        hidden=hidden,
        embedding=getattr(config, "embedding_size", hidden) if family.projection else hidden,
        heads=heads,
        intermediate=getattr(config, family.config.intermediate),
        activation=ACTIVATIONS[activation],
        pre_norm=family.pre_norm,
        epsilon=float(getattr(config, "layer_norm_eps", 1e-12)),
        position_offset=config.pad_token_id + 1 if follows else 0,
        count_positions=follows,
    )


def max_positions(config: Any) -> int:
    """The longest sequence, in tokens with special ones, that the position table covers."""
    return int(config.max_position_embeddings) - shape_of(config).position_offset
