"""The modules that are traced: the stock encoder or the packed one, with a task's head behind it.

Every module's ``forward(ids, segments, mask)`` takes int64 [B, S] and returns a tuple of fp32 tensors, laid out by
task: sequence classification, zero-shot classification and rerank ([B, labels],), question answering (start [B, S],
end [B, S]), token classification ([B, S, labels],), embedding ([B, D],), fill-mask ([B, S, V],), sparse embedding
([B, V],) or, of a text's own tokens, ([B, S],), multi-vector embedding ([B, S, D],), hybrid embedding several of these.
Values on pads mean nothing. A mask is 1 on tokens; of an embedding model that leaves prompts out of its
pooling it is 2 on a prompt's, of a multi-vector one 3 on tokens that no other token attends to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from builder.checkpoint import Checkpoint
from builder.encoder import PackedEncoder, PackedWeights, pack, tensors_of
from builder.errors import BuildError
from builder.families import spec_of
from builder.heads import classification_head, classification_pooling, fill_mask_head, token_head
from builder.sentence_transformers.head import SentenceHead
from builder.sentence_transformers.token_head import LexicalWeights, SeveralHeads, SpladeHead, TokenLayers, attended

CLASSIFIERS = ("sequence_classification", "rerank", "zero_shot_classification")
"""Tasks of a classifier over the first token."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PackedModel(nn.Module):
    """The padding-free encoder and a head. ``marks_prompts``: whether the mask does."""

    def __init__(self, encoder: PackedEncoder, head: nn.Module, splits: bool, marks_prompts: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.splits = splits
        self.marks_prompts = marks_prompts

    @property
    def takes_packed(self) -> bool:
        """Whether ``forward`` takes packed ids as well, as ``efft::encode`` does: nothing behind the encoder asks where
        a text begins, and the mask marks nothing."""
        return not self.marks_prompts and (self.encoder.output != "hidden" or getattr(self.head, "pointwise", False))

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """See the module's docstring."""
        return self.answer(self.encoder(ids, segments, (mask > 0).long() if self.marks_prompts else mask), mask)

    def answer(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """What the head makes of the encoder's output."""
        made = self.head(hidden, mask)
        return made if isinstance(made, tuple) else made.unbind(-1) if self.splits else (made,)


class StockModel(nn.Module):
    """A transformers model behind the same signature; ``head`` for the embedding tasks."""

    def __init__(self, model: nn.Module, task: str, *, segments: bool, head: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.segments = segments
        self.head = head

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """See the module's docstring."""
        extra: dict[str, Any] = {"token_type_ids": segments} if self.segments else {}
        valid = mask if self.head is None else attended(mask)
        outputs = self.model(input_ids=ids, attention_mask=valid, return_dict=False, **extra)
        if self.task == "question_answering":
            return _upcast(outputs[0]), _upcast(outputs[1])
        made = _upcast(outputs[0]) if self.head is None else self.head(_upcast(outputs[0]), mask)
        return made if isinstance(made, tuple) else (made,)


def _upcast(x: Tensor) -> Tensor:
    """To fp32 at least: the float64 reference stays what it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def stock_model(checkpoint: Checkpoint, dtype: torch.dtype, *, pooling: str | None) -> StockModel:
    """The untouched checkpoint behind the common signature."""
    model = checkpoint.load_model(dtype)
    head = own_head(checkpoint, pooling)
    return StockModel(model, checkpoint.task, segments=checkpoint.uses_segments, head=head).eval()


def packed_model(checkpoint: Checkpoint, dtype: torch.dtype, *, pooling: str | None) -> PackedModel:
    """The checkpoint with the padding-free encoder in place of the stock one. Raises BuildError on odd weights."""
    model = checkpoint.load_model()
    encoder = tensors_of(encoder_of(checkpoint, model))
    weights = pack(encoder, checkpoint.family, spec_of(checkpoint.config), dtype)
    return assemble(checkpoint, model, weights, pooling)


def assemble(checkpoint: Checkpoint, model: nn.Module, weights: PackedWeights, pooling: str | None) -> PackedModel:
    """The packed encoder of ``weights`` before the head of ``model``, which is computed in the tables' type."""
    refuse_unseen(checkpoint)
    encoder = PackedEncoder(spec_of(checkpoint.config), weights, output_of(checkpoint, pooling))
    head = _head(model, checkpoint, weights.word.dtype, encoder.output != "hidden", pooling)
    splits = checkpoint.task == "question_answering"
    return PackedModel(encoder, head, splits, not checkpoint.sentences.include_prompt).eval()


def refuse_unseen(checkpoint: Checkpoint) -> None:
    """Raises BuildError for a query expansion that the padding-free encoder cannot compute: to it a token that nobody
    attends to is a pad."""
    outputs = checkpoint.sentences.outputs
    facts = None if outputs is None else outputs.multi_vector
    if facts is not None and facts.expansion is not None and not facts.expansion.attend:
        raise BuildError(
            f"{checkpoint.source}: its queries are expanded with tokens that no token attends to, which the fused "
            "encoder does not compute; build it with --encoder stock (kind ths)"
        )


def encoder_of(checkpoint: Checkpoint, model: nn.Module) -> nn.Module:
    """The encoder within a checkpoint's transformers model."""
    return model if checkpoint.bare else getattr(model, checkpoint.family.prefix)


def output_of(checkpoint: Checkpoint, pooling: str | None) -> str:
    """What the task's head takes from the encoder operator: ``hidden``, ``first`` or ``mean``."""
    if checkpoint.task == "embedding":
        whole = checkpoint.sentences.include_prompt
        return {"cls": "first", "mean": "mean"}.get(pooling or "mean", "hidden") if whole else "hidden"
    if checkpoint.task in CLASSIFIERS:
        pooled = classification_pooling(checkpoint.family, checkpoint.config)
        return "hidden" if pooled == "late" else pooled
    return "hidden"


def per_token(checkpoint: Checkpoint) -> tuple[bool, ...]:
    """Of each output of a task's models, whether it is [B, S, ...]."""
    outputs = checkpoint.sentences.outputs
    if outputs is not None:
        return tuple(name != "dense" and outputs.splade is None for name in outputs.names)
    if checkpoint.task == "question_answering":
        return True, True
    return (checkpoint.task in ("token_classification", "fill_mask"),)


def sentence_head(checkpoint: Checkpoint, pooling: str | None, *, pooled: bool = False) -> SentenceHead:
    """An embedding model's pooling and layers; ``pooled``: behind an encoder that pools."""
    return SentenceHead((pooling or "mean").split("+"), checkpoint.sentences.layers, pooled=pooled).float()


def own_head(checkpoint: Checkpoint, pooling: str | None, *, pooled: bool = False) -> nn.Module | None:
    """What stands behind the transformers model, beyond its own head: for embeddings of every kind; else None."""
    if checkpoint.task == "embedding":
        return sentence_head(checkpoint, pooling, pooled=pooled)
    outputs = checkpoint.sentences.outputs
    if outputs is None or outputs.splade is not None:
        return None if outputs is None else outputs.splade
    made: list[nn.Module] = []
    for name in outputs.names:
        if name == "dense":
            made.append(sentence_head(checkpoint, pooling))
        elif name == "sparse" and outputs.lexical is not None:
            made.append(LexicalWeights(outputs.lexical))
        else:
            made.append(TokenLayers(outputs.token_layers))
    return SeveralHeads(made).float()


def _head(model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, pooled: bool, pooling: str | None) -> nn.Module:
    family, config = checkpoint.family, checkpoint.config
    own: Any = own_head(checkpoint, pooling, pooled=pooled)
    if own is not None and checkpoint.bare:
        return own
    if checkpoint.task == "question_answering":
        return token_head(model, family.answers, config)
    if checkpoint.task == "token_classification":
        return token_head(model, family.tokens, config)
    if checkpoint.task in ("fill_mask", "sparse_embedding"):
        vocabulary = fill_mask_head(model, family, config, dtype)
        return vocabulary if own is None else SpladeHead(vocabulary, own)
    return classification_head(model, family, config)
