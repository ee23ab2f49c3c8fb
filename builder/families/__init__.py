"""The checkpoint families, one row each: weight names, position scheme, traits of the encoder and head shapes.

A family is data, not a class: what differs between BERT, RoBERTa, DistilBERT, ELECTRA, XLM-RoBERTa and CamemBERT is
what their authors called the same tensors; what differs beyond that, attributes of the spec say.
"""

from __future__ import annotations

from typing import Any

from builder.errors import BuildError
from builder.families import classic, deberta, modern, other
from builder.families.family import CONFIG, Family
from builder.families.spec import EncoderSpec

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "EncoderSpec",
    "Family",
    "family_of",
    "max_positions",
    "most_positions",
    "spec_of",
    "stated",
]

FAMILIES: dict[str, Family] = {
    "bert": classic.BERT,
    "roberta": classic.ROBERTA,
    "xlm-roberta": classic.ROBERTA,
    "camembert": classic.ROBERTA,
    "distilbert": classic.DISTILBERT,
    "electra": classic.ELECTRA,
    "roberta-prelayernorm": classic.PRELAYERNORM,
    "ernie": classic.ERNIE,
    "mpnet": classic.MPNET,
    "albert": classic.ALBERT,
    "deberta-v2": deberta.DEBERTA,
    "modernbert": modern.MODERNBERT,
    "eurobert": modern.EUROBERT,
    "nomic_bert": modern.NOMIC,
    "gte": modern.GTE,
    "jina_embeddings_v3": modern.JINA,
    "roformer": modern.ROFORMER,
    "esm": other.ESM,
    "t5": other.T5,
    "mt5": other.T5,
}
"""By ``config.model_type``."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""transformers' activation names to the operators'."""
_FIXED_ACTIVATION = {"esm": "gelu"}
"""Of families whose config states none."""


def family_of(config: Any) -> Family:
    """The row for a transformers config. Raises BuildError for a model type that is not in the table."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BuildError(f"model type {config.model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    return family.shaped(family, config)


def stated(value: str, config: Any) -> str:
    """A value of the table, or the config's where the table says so."""
    return str(getattr(config, value.removeprefix(CONFIG))) if value.startswith(CONFIG) else value


def spec_of(config: Any) -> EncoderSpec:
    """Read the encoder off a transformers config. Raises BuildError for what the kernels cannot run."""
    family = family_of(config)
    hidden, heads = getattr(config, family.config.hidden), getattr(config, family.config.heads)
    if getattr(config, "position_embedding_type", "absolute") != "absolute" and config.model_type != "esm":
        raise BuildError(f"position embeddings of type {config.position_embedding_type!r} are not supported")
    traits = family.traits(config)
    head = traits.pop("head", None)
    if heads < 1 or (head is None and hidden % heads):
        raise BuildError(f"head size {hidden}/{heads} is not supported; it must be even and at most 128")
    size = hidden // heads if head is None else head
    if size < 1 or size % 2 or size > 128:
        stated_size = f"{hidden}/{heads}" if size * heads == hidden else str(size)
        raise BuildError(f"head size {stated_size} is not supported; it must be even and at most 128")
    fields = {
        "layers": getattr(config, family.config.layers),
        "embedding": getattr(config, "embedding_size", None) if "projection" in family.outside else None,
        "activation": _activation(config, family),
        "norm": family.norm,
        "epsilon": float(getattr(config, family.config.epsilon, 1e-12)),
        "positions": family.positions,
        **({} if size * heads == hidden else {"head": size}),
        **traits,
    }
    if fields.get("kv_heads") == heads:
        del fields["kv_heads"]
    if fields["positions"] == "ids" and "pad" not in fields:
        fields["pad"] = _pad_of(config)
    if fields["positions"] != "ids":
        fields.pop("pad", None)
    spec = EncoderSpec(hidden=hidden, heads=heads, intermediate=getattr(config, family.config.intermediate), **fields)
    if spec.positions != "none" and _stated_positions(config, family) <= spec.first_position:
        raise BuildError(
            f"max_position_embeddings {_stated_positions(config, family)} leaves no position for a token: "
            f"{config.model_type} begins behind pad_token_id {spec.pad}"
        )
    return spec


def _activation(config: Any, family: Family) -> str:
    name = _FIXED_ACTIVATION.get(config.model_type) or getattr(config, family.config.activation)
    if name not in ACTIVATIONS:
        raise BuildError(f"activation {name!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def _pad_of(config: Any) -> int:
    """The id that positions are counted from. transformers itself cannot run such a model without one."""
    if config.pad_token_id is None:
        raise BuildError(f"pad_token_id is missing from config.json; {config.model_type} counts positions from it")
    return int(config.pad_token_id)


def _stated_positions(config: Any, family: Family) -> int:
    return family.length or int(getattr(config, family.config.positions))


def max_positions(config: Any) -> int:
    """The longest sequence, in tokens with special ones, that the positions cover or, without a table, are made for."""
    spec = spec_of(config)
    stated_positions = _stated_positions(config, family_of(config))
    return stated_positions if spec.positions == "none" else stated_positions - spec.first_position


def most_positions(config: Any) -> int | None:
    """The longest sequence that the encoder can be given; None: any, as only distances count."""
    spec = spec_of(config)
    return None if spec.positions == "none" and spec.relative != "none" else max_positions(config)
