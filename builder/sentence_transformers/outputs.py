"""Models that give more than one vector: sparse and multi-vector encoders of sentence-transformers, and BGE-M3.

The first two are read through the library itself, as embedding models are. BGE-M3 is a plain embedding model to it; the
two layers that make more of it lie beside it in files of their own (Chen et al., "M3-Embedding", ACL Findings 2024).
Which tokens it leaves out, and how it scores, is FlagEmbedding's way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builder import weights
from builder.errors import BuildError
from builder.sentence_transformers import folder as folders
from builder.sentence_transformers import model as library
from builder.sentence_transformers.head import Normalize
from builder.sentence_transformers.model import SentenceModel, Source
from builder.sentence_transformers.token_head import SpladePool
from handler.archive import ExpansionFacts, MultiVectorFacts, SparseFacts
from handler.config import Output

SPARSE_LINEAR, COLBERT_LINEAR = "sparse_linear.pt", "colbert_linear.pt"
"""Of BGE-M3's repository: the layers for lexical weights and for token vectors, a state dict of a Linear each."""
FILES = (SPARSE_LINEAR, COLBERT_LINEAR, "artifact.metadata")
"""Beside the weights; the last one of Stanford's ColBERT."""
_OF_ROLES = ("query_length", "document_length", "query_expansion")


@dataclass(frozen=True)
class Outputs:
    """What a model gives beside a pooled vector, or in its place. ``names``: in the order of the model's outputs."""

    names: tuple[Output, ...] = ()
    sparse: SparseFacts | None = None
    splade: SpladePool | None = None
    lexical: nn.Linear | None = None
    multi_vector: MultiVectorFacts | None = None
    token_layers: tuple[nn.Module, ...] = ()


def read_sparse(source: Source, hidden: int) -> SentenceModel:
    """A sparse encoder's settings. ``hidden``: the encoder's width. Raises BuildError naming what cannot be served."""
    if has_lexical(source.root):
        return replace(library.read_embedding(source), outputs=_lexical(source, hidden))
    folders.check_sparse_modules(source.root, source.name)
    model = open_sparse(source)
    transformer, pooling = model
    library.check_transformer(source, transformer, "token_embeddings", "logits")
    facts = SparseFacts(kind="vocabulary", sums=pooling.pooling_strategy == "sum", most=model.max_active_dims)
    splade = SpladePool(pooling.pooling_strategy, pooling.activation_function)
    return replace(library.settings_of(source, model), outputs=Outputs(("sparse",), facts, splade))


def read_multi_vector(source: Source, hidden: int) -> SentenceModel:
    """A multi-vector encoder's settings and layers. Raises BuildError naming what cannot be served."""
    if has_token_layer(source.root):
        return replace(library.read_embedding(source), outputs=_of_tokens(source, hidden))
    folders.check_multi_vector_modules(source.root, source.name)
    model = open_multi_vector(source)
    transformer, *rest = model
    library.check_transformer(source, transformer, "token_embeddings", "last_hidden_state", _OF_ROLES)
    masks = [module for module in rest if type(module).__name__ == "MultiVectorMask"]
    layers, _ = library.layers_of(
        source, [module for module in rest if module not in masks], hidden, place="token_embeddings"
    )
    facts = _facts(source, model, transformer, masks)
    outputs = Outputs(("multi_vector",), multi_vector=facts, token_layers=tuple(layers))
    return replace(library.settings_of(source, model), outputs=outputs)


def read_hybrid(source: Source, hidden: int) -> SentenceModel:
    """BGE-M3's vector, weights and token vectors, or those of the three that the folder has.

    Raises BuildError where it has only one.
    """
    lexical, tokens = has_lexical(source.root), has_token_layer(source.root)
    if not (lexical or tokens):
        raise BuildError(
            f"{source.name}: hybrid_embedding needs {SPARSE_LINEAR} or {COLBERT_LINEAR} beside the weights, as BGE-M3 "
            "has them; use --task embedding"
        )
    found = Outputs(("dense",))
    if lexical:
        sparse = _lexical(source, hidden)
        found = replace(found, names=(*found.names, "sparse"), sparse=sparse.sparse, lexical=sparse.lexical)
    if tokens:
        vectors = _of_tokens(source, hidden)
        names: tuple[Output, ...] = (*found.names, "multi_vector")
        found = replace(found, names=names, multi_vector=vectors.multi_vector, token_layers=vectors.token_layers)
    return replace(library.read_embedding(source), outputs=found)


def has_lexical(root: Path) -> bool:
    """Whether a folder holds BGE-M3's layer for lexical weights."""
    return (root / SPARSE_LINEAR).is_file()


def has_token_layer(root: Path) -> bool:
    """Whether a folder holds BGE-M3's layer for token vectors."""
    return (root / COLBERT_LINEAR).is_file()


def open_sparse(source: Source, dtype: torch.dtype = torch.float32) -> Any:
    """The folder as a ``SparseEncoder``; see :func:`library.opened`. Raises BuildError."""
    return library.opened(source, "SparseEncoder", dtype)


def open_multi_vector(source: Source, dtype: torch.dtype = torch.float32) -> Any:
    """The folder as a ``MultiVectorEncoder``; see :func:`library.opened`. Raises BuildError."""
    return library.opened(source, "MultiVectorEncoder", dtype)


def skipped(tokenizer: Any) -> list[int]:
    """The tokens that have no lexical weight: FlagEmbedding leaves out these four and no other special ones."""
    ids = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return sorted({index for index in ids if index is not None})


def _lexical(source: Source, hidden: int) -> Outputs:
    """BGE-M3's lexical weights; which tokens have none is read off the tokenizer, see :func:`skipped`."""
    return Outputs(("sparse",), SparseFacts(kind="lexical"), lexical=_linear(source, SPARSE_LINEAR, hidden, 1))


def _of_tokens(source: Source, hidden: int) -> Outputs:
    """BGE-M3's token vectors: of length 1, of all tokens but the first; scores are means over the query's."""
    layers = (_linear(source, COLBERT_LINEAR, hidden, None), Normalize())
    return Outputs(("multi_vector",), multi_vector=MultiVectorFacts(skip_first=True, mean=True), token_layers=layers)


def _linear(source: Source, name: str, hidden: int, outputs: int | None) -> nn.Linear:
    """A Linear of its state dict. Raises BuildError for a file that holds another."""
    state = weights.read([source.root / name], source.name)
    weight, bias = state.get("weight"), state.get("bias")
    if weight is None or weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise BuildError(f"{source.name}: {name} holds no weight [D, {hidden}] with a bias [D]")
    if weight.shape[1] != hidden or (outputs is not None and weight.shape[0] != outputs):
        wanted = [outputs or "D", hidden]
        raise BuildError(f"{source.name}: the weight in {name} is {list(weight.shape)}, it must be {wanted}")
    weights.check_finite(state, f"{source.name}: {name}")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({key: state[key].float() for key in ("weight", "bias") if key in state})
    return linear


def _facts(source: Source, model: Any, transformer: Any, masks: list[Any]) -> MultiVectorFacts:
    if any(mask.keep_only_token_ids for mask in masks):
        raise BuildError(f"{source.name}: its module MultiVectorMask keeps chosen tokens only, which is not supported")
    skip = {int(index) for mask in masks if mask._skiplist_ids is not None for index in mask._skiplist_ids}
    roles = [role for role in ("query", "document") if any(role in mask.skiplist_tasks for mask in masks)]
    expansion = transformer.query_expansion
    query_length = transformer.query_length
    if expansion is not None:
        fixed = expansion["strategy"] == "fixed"
        query_length = expansion["length"] if fixed else query_length and max(query_length, expansion["length"])
    return MultiVectorFacts(
        query_length=query_length,
        document_length=transformer.document_length,
        expansion=expansion and _expansion(source, model.tokenizer, expansion) if masks else None,
        skip=sorted(skip),
        skip_in=roles,  # type: ignore[arg-type]
        mean=model.similarity_fn_name == "meanmaxsim",
    )


def _expansion(source: Source, tokenizer: Any, stated: dict[str, Any]) -> ExpansionFacts:
    named = stated["token"]
    token = tokenizer.mask_token_id if named is None else tokenizer.convert_tokens_to_ids(named)
    token = tokenizer.eos_token_id if token is None else token
    if token is None:
        raise BuildError(f"{source.name}: its query expansion names no token, and the tokenizer has no mask")
    return ExpansionFacts(token=token, length=stated["length"], attend=stated["attend"])
