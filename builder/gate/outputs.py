"""The other side of the gate for sparse, multi-vector and hybrid embeddings, as arrays of numbers.

Sparse and multi-vector encoders are sentence-transformers'. What BGE-M3 makes of its hidden states is said here once
more, as its paper defines it (Chen et al., "M3-Embedding", ACL Findings 2024, section 3.2) and FlagEmbedding does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from builder.checkpoint import Checkpoint
from builder.sentence_transformers import outputs as several
from builder.sentence_transformers.model import open_embedding
from handler.config import SetupConfig

QUERY = "Which parcel has not arrived?"
Case: TypeAlias = tuple[str, dict[str, Any]]
"""A text and a request's options; of a multi-vector model ``query``: it is scored, not embedded."""
Opened: TypeAlias = Callable[[Any], Any]
"""One of the library's ways to read the folder, see ``builder.sentence_transformers`` -> its model, set as asked."""


def numbers(answer: dict[str, Any], rows: int) -> np.ndarray:
    """An answer's numbers, outputs one behind the other; a sparse one as the whole vector of ``rows`` weights."""
    parts = []
    if "embedding" in answer:
        parts.append(np.array(answer["embedding"]))
    if "sparse_embedding" in answer:
        weights = np.zeros(rows)
        for index, weight in answer["sparse_embedding"].items():
            weights[int(index)] = weight
        parts.append(weights)
    if "token_embeddings" in answer:
        parts.append(np.array(answer["token_embeddings"]).reshape(-1))
    if "results" in answer:
        parts.append(np.array([result["score"] for result in answer["results"]]))
    return np.concatenate(parts)


def request_of(checkpoint: Checkpoint, case: Case) -> dict[str, Any]:
    """The body of a case; weights stand under ids, which two tokens cannot share."""
    text, options = case
    if "query" in options:
        return {**options, "texts": [text]}
    keys = {} if checkpoint.task == "multi_vector_embedding" else {"sparse_keys": "ids"}
    return {"text": text, **options, **keys}


def expected(checkpoint: Checkpoint, config: SetupConfig, cases: Sequence[Case], opened: Opened) -> list[np.ndarray]:
    """What each case's numbers are to be."""
    outputs = checkpoint.sentences.outputs
    assert outputs is not None
    if outputs.splade is not None:
        model = opened(several.open_sparse)
        return [_way(model, o)(t, **_named(o), show_progress_bar=False).to_dense().double().numpy() for t, o in cases]
    if outputs.names == ("multi_vector",) and not several.has_token_layer(checkpoint.root):
        model = opened(several.open_multi_vector)
        return [_late(model, *case) for case in cases]
    model = opened(open_embedding)
    with torch.inference_mode():
        return [_m3(checkpoint, config, model, *case) for case in cases]


def _way(model: Any, options: dict[str, Any]) -> Any:
    ways = {"query": model.encode_query, "document": model.encode_document}
    return ways.get(str(options.get("input_type")), model.encode)


def _named(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in ("prompt", "prompt_name")}


def _late(model: Any, text: str, options: dict[str, Any]) -> np.ndarray:
    if "query" not in options:
        return _way(model, options)(text, **_named(options), show_progress_bar=False).double().numpy().reshape(-1)
    query = model.encode_query(options["query"], **_named(options), show_progress_bar=False)
    document = model.encode_document(text, show_progress_bar=False)
    return model.similarity([query], [document]).double().numpy().reshape(-1)


def _m3(checkpoint: Checkpoint, config: SetupConfig, model: Any, text: str, options: dict[str, Any]) -> np.ndarray:
    """All the outputs that the checkpoint is built with, or the score of a text for a query."""
    if "query" in options:
        query, document = (
            _vectors(checkpoint, _features(model, one, how))
            for one, how in ((options["query"], {**options, "input_type": "query"}), (text, {"input_type": "document"}))
        )
        return (query @ document.T).amax(1).mean().double().numpy().reshape(-1)
    features = _features(model, text, options)
    outputs = checkpoint.sentences.outputs
    assert outputs is not None
    parts = []
    for name in outputs.names:
        if name == "dense":
            cut = {"truncate_dim": config.dimensions, "normalize_embeddings": bool(config.normalize)}
            way = _way(model, options)
            parts.append(way(text, show_progress_bar=False, convert_to_tensor=True, **cut, **_named(options)))
        elif name == "sparse":
            parts.append(_lexical(checkpoint, features))
        else:
            parts.append(_vectors(checkpoint, features).reshape(-1))
    return torch.cat([part.double() for part in parts]).numpy()


def _features(model: Any, text: str, options: dict[str, Any]) -> dict[str, Tensor]:
    return _way(model, options)(text, output_value=None, show_progress_bar=False, **_named(options))


def _lexical(checkpoint: Checkpoint, features: dict[str, Tensor]) -> Tensor:
    """A weight for each row of the vocabulary."""
    outputs = checkpoint.sentences.outputs
    assert outputs is not None
    assert outputs.lexical is not None
    hidden = features["token_embeddings"]
    of_tokens = F.relu(_linear(outputs.lexical, hidden))[:, 0]
    weights = hidden.new_zeros(checkpoint.config.vocab_size)
    weights.scatter_reduce_(0, features["input_ids"], of_tokens, "amax")
    weights[several.skipped(checkpoint.tokenizer)] = 0
    return weights


def _vectors(checkpoint: Checkpoint, features: dict[str, Tensor]) -> Tensor:
    """[S - 1, D]: the first token has none."""
    outputs = checkpoint.sentences.outputs
    assert outputs is not None
    return F.normalize(_linear(outputs.token_layers[0], features["token_embeddings"][1:]), dim=-1)


def _linear(layer: Any, hidden: Tensor) -> Tensor:
    """In the type of the hidden states."""
    bias = None if layer.bias is None else layer.bias.to(hidden.dtype)
    return F.linear(hidden, layer.weight.to(hidden.dtype), bias)
