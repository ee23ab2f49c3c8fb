"""Values of a checkpoint's config.json that no encoder can have, found before anything is made of that size.

transformers takes most of them as they are and fails later, somewhere inside, or fills the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from builder.errors import BuildError
from builder.files import first_line
from builder.quantisation.stored import check_method

_SIZES = (
    "vocab_size", "hidden_size", "dim", "embedding_size", "intermediate_size", "hidden_dim", "num_hidden_layers",
    "n_layers", "num_attention_heads", "n_heads", "max_position_embeddings", "type_vocab_size", "num_labels",
)  # fmt: skip
_WITHOUT_TYPES = ("deberta-v2", "gte")
"""Model types that may do without a table of token types."""
_HIDDEN, _HEADS, _LAYERS = ("hidden_size", "dim"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")
_LARGEST = 2**31 - 1
"""The operators and the tokenizers count in 32 bits."""
MOST_LAYERS = 1000
"""A module for each layer is made before any weight is looked at: a million of them would take hours."""
_TEXTS = ("model_type", "hidden_act", "activation", "position_embedding_type")
_EPSILON = ("layer_norm_eps", "layer_norm_epsilon")
_REFUSED = {
    "is_decoder": "decoders are not served, only encoders that read a text in both directions",
    "add_cross_attention": "decoders with cross-attention are not served",
    "is_encoder_decoder": "encoder-decoders are not served",
    "transformers_weights": "name the weights model.safetensors, without this key",
    "pruned_heads": "checkpoints with pruned heads are not served",
}
_ENCODERS = ("t5", "mt5")
"""Encoder-decoders whose encoders are served by themselves."""
_DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def check_sizes(content: Mapping[str, Any], source: str) -> None:
    """Raises BuildError in one line that names the key of config.json and what it may be."""
    for key in _SIZES:
        if content.get(key) is not None:
            none = key == "type_vocab_size" and content.get("model_type") in _WITHOUT_TYPES
            _check_size(key, content[key], source, 0 if none else 1)
    for key in _TEXTS:
        if content.get(key) is not None and not isinstance(content[key], str):
            raise _wrong(source, key, content[key], "a string belongs there")
    for key in _EPSILON:
        value = content.get(key)
        if value is not None and not (_is_number(value) and 0 < value < 1):
            raise _wrong(source, key, value, "a number between 0 and 1 belongs there")
    hidden, heads = _first(content, _HIDDEN), _first(content, _HEADS)
    if hidden and heads and hidden[1] % heads[1]:
        raise BuildError(f"{source}: config.json: {hidden[0]} {hidden[1]} is not a multiple of {heads[0]} {heads[1]}")
    _check_pad(content, source)
    check_method(content, source)
    _check_kind(content, source)


def _check_size(key: str, value: Any, source: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(source, key, value, "a whole number belongs there")
    most = MOST_LAYERS if key in _LAYERS else _LARGEST
    if not least <= value <= most:
        raise _wrong(source, key, value, f"a number from {least} to {most} belongs there")


def _check_pad(content: Mapping[str, Any], source: str) -> None:
    pad, rows = content.get("pad_token_id"), content.get("vocab_size")
    if pad is None:
        return
    if isinstance(pad, bool) or not isinstance(pad, int):
        raise _wrong(source, "pad_token_id", pad, "a token's id belongs there")
    if pad < 0 or (rows is not None and pad >= rows):
        raise _wrong(source, "pad_token_id", pad, f"an id from 0 to {(rows or _LARGEST) - 1} belongs there")


def _check_kind(content: Mapping[str, Any], source: str) -> None:
    for key, reason in _REFUSED.items():
        if content.get(key) and not (key == "is_encoder_decoder" and content.get("model_type") in _ENCODERS):
            raise BuildError(f"{source}: config.json: {key} is set: {reason}")
    architectures = content.get("architectures")
    if architectures is None:
        return
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise _wrong(source, "architectures", architectures, "a list of class names belongs there")
    for name in architectures:
        if name.endswith(_DECODERS):
            raise BuildError(f"{source}: config.json: architectures names {name}: decoders are not served")


def _first(content: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, int] | None:
    return next(((key, content[key]) for key in keys if content.get(key) is not None), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(source: str, key: str, value: Any, remedy: str) -> BuildError:
    return BuildError(f"{source}: config.json: {key} is {first_line(ValueError(repr(value)), 60)}; {remedy}")
