"""What a row of the family table can say.

Names are those of transformers' ``state_dict()`` once a checkpoint is loaded, which for some families are not those on
disk (``builder.families.disk``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from builder.families.spec import EncoderSpec

Modules = Mapping[str, tuple[str, ...]]
"""A weight slot's name (``kernels/include/efft/weights.h``) -> the modules stacked in it, each with ``.weight`` and,
but for the tables, ``.bias``."""

State = dict[str, Tensor]
"""An encoder's tensors by name: those of its ``state_dict()`` and its buffers."""

BERT_LAYER: Modules = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "intermediate": ("intermediate.dense",),
    "output": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}
BERT_OUTSIDE: Modules = {
    "word": ("embeddings.word_embeddings",),
    "position": ("embeddings.position_embeddings",),
    "segment": ("embeddings.token_type_embeddings",),
    "embedding_norm": ("embeddings.LayerNorm",),
}
CONFIG = "config."
"""What begins so is the name of a config's attribute that holds the value."""


@dataclass(frozen=True)
class ConfigNames:
    """Attributes of the transformers config that hold the encoder's sizes."""

    layers: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    intermediate: str = "intermediate_size"
    activation: str = "hidden_act"
    epsilon: str = "layer_norm_eps"
    positions: str = "max_position_embeddings"


@dataclass(frozen=True)
class ClassificationNames:
    """A sequence classifier's head: ``out(norm(activation(dense(pooled))))``, names from the model's root.

    ``pooling`` is ``first``, ``mean``, or ``late``: the mean over the tokens is taken of what ``out`` reads. It and
    ``activation`` may be a config's (CONFIG).
    """

    dense: str
    activation: str
    out: str
    norm: str = ""
    pooling: str = "first"


@dataclass(frozen=True)
class TokenNames:
    """A head over tokens: ``out(norm(activation(dense(hidden))))``, names from the model's root; empty: left out."""

    out: str
    dense: str = ""
    activation: str = ""
    norm: str = ""


@dataclass(frozen=True)
class FillMaskNames:
    """A masked-language-model head: ``decoder(norm(activation(dense(hidden))))``, names from the model's root.

    ``bias`` is a parameter that is added to the decoder's result; the decoder may be the word table itself.
    """

    dense: str
    norm: str
    decoder: str
    activation: str = ""
    """Empty: the encoder's own activation."""
    bias: str = ""


def _nothing(config: Any) -> dict[str, Any]:
    return {}


def _unchanged(state: State, spec: EncoderSpec) -> State:
    return state


def _itself(family: Family, config: Any) -> Family:
    return family


@dataclass(frozen=True)
class Family:
    """One row of the table. ``prefix`` is the encoder's attribute on a model with a head."""

    prefix: str
    classification: ClassificationNames | None
    fill_mask: FillMaskNames | None
    tokens: TokenNames = field(default_factory=lambda: TokenNames("classifier"))
    answers: TokenNames | None = field(default_factory=lambda: TokenNames("qa_outputs"))
    layer_prefix: str = "encoder.layer"
    """With ``{0}`` and ``{1}`` where layers come in groups of ``members``: a layer's group and its place there."""
    members: int = 1
    layer: Modules = field(default_factory=lambda: BERT_LAYER)
    """Names relative to a layer."""
    outside: Modules = field(default_factory=lambda: BERT_OUTSIDE)
    """Names outside the layers."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Slots that are one tensor and no module's weight -> its name, relative to a layer or outside the layers."""
    config: ConfigNames = field(default_factory=ConfigNames)
    segments: bool = True
    """Whether the family has a segment (token type) table at all."""
    norm: str = "post"
    positions: str = "slot"
    """As EncoderSpec has it; ``ids`` is RoBERTa's scheme, which counts from the padding id."""
    bare: bool = False
    """Whether modules may lack a bias, which is then zero: the loaded model says which."""
    length: int | None = None
    """The longest text in tokens where the config states none."""
    pooler: bool = False
    """Whether transformers' encoder class has to be told to leave out its pooler."""
    traits: Callable[[Any], dict[str, Any]] = _nothing
    """What a config says of the encoder beyond sizes: fields of EncoderSpec. Raises BuildError for what none runs."""
    fold: Callable[[State, EncoderSpec], State] = _unchanged
    """Makes of the loaded tensors those that the slots hold."""
    shaped: Callable[[Family, Any], Family] = _itself
    """The row for one config, where names hang on it."""

    def lacks(self, task: str) -> bool:
        """Whether no class of the family is an encoder with that task's head."""
        heads = {
            "sequence_classification": self.classification,
            "rerank": self.classification,
            "zero_shot_classification": self.classification,
            "question_answering": self.answers,
            "fill_mask": self.fill_mask,
        }
        return task in heads and heads[task] is None

    def modules(self, slot: str, layer: int) -> tuple[str, ...]:
        """The modules of a slot's weights; ``slot`` as in EncoderSpec's layout, less its part; layer -1: outside."""
        if layer < 0:
            return self.outside[slot]
        local = slot.partition(".")[2]
        return tuple(f"{self._layer(layer)}.{name}" for name in self.layer[local])

    def tensor(self, slot: str, layer: int) -> str | None:
        """The one tensor that a slot holds, where it is no module's weight."""
        name = self.tensors.get(slot if layer < 0 else slot.partition(".")[2])
        return name if name is None or layer < 0 else f"{self._layer(layer)}.{name}"

    def _layer(self, layer: int) -> str:
        if "{" in self.layer_prefix:
            return self.layer_prefix.format(*divmod(layer, self.members))
        return f"{self.layer_prefix}.{layer}"
