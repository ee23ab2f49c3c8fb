"""Weights of few tokens for a text: a vector as wide as the vocabulary, nearly all of it zero.

SPLADE (Formal, Piwowarski, Clinchant, SIGIR 2021) gives weights to the vocabulary's tokens, BGE-M3 (Chen et al.,
"M3-Embedding", ACL Findings 2024) to those of the text itself.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from handler.archive import ArchiveFacts, SparseFacts
from handler.config import SetupConfig
from handler.packing import Arrays
from handler.schemas import SparseAnswer, SparseRequest
from handler.tasks.base import Job, best, with_dropped
from handler.tasks.prompts import PromptedTask
from handler.tokenizer import Sequence, Tokenizer

WEIGHTS_PER_PASS = 2**25
"""128 MiB of fp32: before they are pooled there is a vocabulary's width of them for every token."""
Weights: TypeAlias = "tuple[np.ndarray, np.ndarray]"
"""Ids int64 [n], each once, and their weights fp32 [n], all above zero."""


class SparseEmbedding(PromptedTask[SparseRequest]):
    """The model's output is weights [V] of the vocabulary, or [S] of a text's tokens."""

    request = SparseRequest
    answer = SparseAnswer

    def __init__(self, facts: ArchiveFacts, config: SetupConfig, tokenizer: Tokenizer) -> None:
        super().__init__(facts, config, tokenizer)
        self.weights = SparseWeights(facts, config, tokenizer)

    def pass_tokens(self, budget: int) -> int:
        """See Task.pass_tokens."""
        if self.weights.facts.kind == "lexical":
            return budget
        return min(budget, WEIGHTS_PER_PASS // self.tokenizer.vocabulary_size)

    def keep(self, sequence: Sequence, outputs: Arrays) -> Arrays:
        """See Task.keep: the ids and weights that are not zero."""
        return self.weights.of(sequence, outputs[0])

    def finish(self, job: Job[SparseRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        return with_dropped({"sparse_embedding": self.weights.answer(job.request, outputs)}, job)


class SparseWeights:
    """Makes answers of weights, for tasks of which they are all or a part."""

    def __init__(self, facts: ArchiveFacts, config: SetupConfig, tokenizer: Tokenizer) -> None:
        self.facts = facts.sparse or SparseFacts(kind="vocabulary")
        self._config = config
        self._tokenizer = tokenizer
        self._skip = np.array(self.facts.skip, dtype=np.int64)

    def of(self, sequence: Sequence, output: np.ndarray) -> Weights:
        """The weights that are not zero; ``output``: [V], or [S or more] of a sequence's tokens."""
        if self.facts.kind == "vocabulary":
            ids = np.flatnonzero(output > 0)
            return ids, output[ids]
        ids, weights = np.array(sequence.ids), output[: len(sequence.ids)]
        counted = (weights > 0) & ~np.isin(ids, self._skip)
        return _each_once(ids[counted], weights[counted], np.maximum)

    def answer(self, request: SparseRequest, windows: list[Arrays]) -> dict[str, float]:
        """Heaviest first, as many as the request, the config or the model wants."""
        ids, weights = windows[0]
        if len(windows) > 1:
            parts = [np.concatenate(part) for part in zip(*windows, strict=True)]
            ids, weights = _each_once(parts[0], parts[1], np.add if self.facts.sums else np.maximum)
        count = request.top_k or self._config.top_k or self.facts.most or len(weights)
        chosen = best(weights, count) if len(weights) else []
        name = self._name_of(request)
        return {name(int(ids[i])): float(weights[i]) for i in chosen}

    def _name_of(self, request: SparseRequest) -> Any:
        default = "ids" if self.facts.kind == "lexical" else "tokens"
        by_token = (request.sparse_keys or self._config.sparse_keys or default) == "tokens"
        return self._token if by_token else str

    def _token(self, index: int) -> str:
        """A table may have more rows than the tokenizer has tokens."""
        return self._tokenizer.token(index) or f"<row {index}>"


def _each_once(ids: np.ndarray, weights: np.ndarray, join: np.ufunc) -> Weights:
    found, places = np.unique(ids, return_inverse=True)
    joined = np.zeros(len(found), dtype=np.float32)
    join.at(joined, places, weights)
    return found, joined
