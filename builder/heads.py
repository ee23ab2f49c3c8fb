"""The heads behind the packed encoder, made of a transformers model's modules as the family table names them.

Each is called with the encoder's output and the mask, [B, S, H] or, where the encoder has pooled, [B, H], and [B, S].
Those that are ``pointwise`` make each token's row of that token's alone and read no mask, so that they also take the
[T, H] of packed tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from builder.errors import BuildError
from builder.families import ACTIVATIONS, Family, stated
from builder.families.family import FillMaskNames, TokenNames

_FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
_POOLINGS = {"first": "first", "cls": "first", "bos": "first", "mean": "mean", "late": "late"}
"""A family's or a config's word to what is pooled; the first two by the encoder."""


class _UpcastHead(nn.Module):
    """A head computed in fp32, whatever the encoder's type: it costs nothing and rounds nothing."""

    pointwise = True

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers).float()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.layers(hidden.float())


class _LateHead(nn.Module):
    """A classifier over every token whose logits are averaged; since the last layer is linear, what it reads is."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        *front, out = layers
        self.front = nn.Sequential(*front).float()
        self.out = out.float()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        weights = (mask > 0).unsqueeze(-1).float()
        return self.out((self.front(hidden.float()) * weights).sum(1) / weights.sum(1).clamp(min=1))


class _VocabularyHead(nn.Module):
    """The fill-mask head in the encoder's type: its decoder is as large as the word table."""

    pointwise = True

    def __init__(self, dtype: torch.dtype, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers).to(dtype)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.layers(hidden).float()


def classification_pooling(family: Family, config: Any) -> str:
    """What a sequence classifier reads: ``first``, ``mean`` or ``late``. Raises BuildError for another rule."""
    if family.classification is None:
        raise BuildError(f"{config.model_type} has no sequence classifier that is an encoder with a head")
    said = stated(family.classification.pooling, config)
    if said not in _POOLINGS:
        raise BuildError(f"classifier_pooling is {said!r}; supported: {', '.join(_POOLINGS)}")
    return _POOLINGS[said]


def classification_head(model: nn.Module, family: Family, config: Any) -> nn.Module:
    """A sequence classifier's."""
    late = classification_pooling(family, config) == "late"
    names = family.classification
    assert names is not None
    layers = [*_front(model, names.dense, _function(names.activation, config), names.norm), _module(model, names.out)]
    return _LateHead(*layers) if late else _UpcastHead(*layers)


def token_head(model: nn.Module, names: TokenNames | None, config: Any) -> nn.Module:
    """A head over every token."""
    if names is None:
        raise BuildError(f"{config.model_type} has no such head over an encoder's tokens")
    front = _front(model, names.dense, _function(names.activation, config), names.norm) if names.dense else []
    return _UpcastHead(*front, _module(model, names.out))


def fill_mask_head(model: nn.Module, family: Family, config: Any, dtype: torch.dtype) -> nn.Module:
    """A masked language model's."""
    names = family.fill_mask
    if names is None:
        raise BuildError(f"{config.model_type} has no masked-language-model head")
    activation = names.activation or f"config.{family.config.activation}"
    front = _front(model, names.dense, _function(activation, config), names.norm) if names.dense else []
    return _VocabularyHead(dtype, *front, _decoder(model, names))


def _front(model: nn.Module, dense: str, function: nn.Module, norm: str) -> list[nn.Module]:
    return [_module(model, dense), function, *([_module(model, norm)] if norm else [])]


def _function(name: str, config: Any) -> nn.Module:
    said = stated(name, config)
    known = said if said in _FUNCTIONS else ACTIVATIONS.get(said)
    if name and known is None:
        raise BuildError(f"activation {said!r} of the head is not supported; supported: {', '.join(_FUNCTIONS)}")
    return _FUNCTIONS[known]() if known else nn.Identity()


def _decoder(model: nn.Module, names: FillMaskNames) -> nn.Module:
    """A linear layer of the decoder's weight and a bias that may be a parameter beside it."""
    module = model.get_submodule(names.decoder)
    if not names.bias:
        return copy.deepcopy(module)
    weight = module.get_parameter("weight")
    decoder = nn.Linear(weight.shape[1], weight.shape[0])
    decoder.weight = nn.Parameter(weight.detach().clone())
    decoder.bias = nn.Parameter(model.get_parameter(names.bias).detach().clone())
    return decoder


def _module(model: nn.Module, name: str) -> nn.Module:
    """A copy: a head is cast to a type of its own, which must not reach the model."""
    return copy.deepcopy(model.get_submodule(name))
