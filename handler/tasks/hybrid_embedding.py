"""Several embeddings of a text in one pass: a vector, weights of its tokens, a vector for each token.

BGE-M3 (Chen et al., "M3-Embedding", ACL Findings 2024) gives all three.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from handler.archive import ArchiveFacts, MultiVectorFacts
from handler.config import SetupConfig
from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import HybridAnswer, HybridRequest
from handler.tasks.base import Job, with_dropped
from handler.tasks.embedding import Embedding
from handler.tasks.multi_vector import TokenVectors, with_lists
from handler.tasks.sparse_embedding import SparseWeights
from handler.tokenizer import Sequence, Tokenizer


class HybridEmbedding(Embedding[HybridRequest]):
    """The model's outputs are those that ``facts.outputs`` names, in its order: a vector [D], weights [S], vectors
    [S, D]. Windows of a text are joined as each of the three tasks joins them."""

    request = HybridRequest
    answer = HybridAnswer

    def __init__(self, facts: ArchiveFacts, config: SetupConfig, tokenizer: Tokenizer) -> None:
        super().__init__(facts, config, tokenizer)
        self._weights = SparseWeights(facts, config, tokenizer)
        self._vectors = TokenVectors(facts.multi_vector or MultiVectorFacts())

    def keep(self, sequence: Sequence, outputs: Arrays) -> Arrays:
        """See Task.keep."""
        length = len(sequence.ids)
        return tuple(o if n == "dense" else o[:length] for n, o in zip(self.facts.outputs, outputs, strict=True))

    def finish_all(
        self, jobs: Many[Job[HybridRequest]], outputs: Many[list[Arrays]]
    ) -> list[dict[str, Any] | RequestError]:
        """See Task.finish_all: one by one."""
        return [self._finished(job, own) for job, own in zip(jobs, outputs, strict=True)]

    def finish(self, job: Job[HybridRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish. Raises RequestError for an output that the archive does not have."""
        wanted = job.request.outputs or self.config.outputs or self.facts.outputs
        if lacking := [name for name in wanted if name not in self.facts.outputs]:
            has = ", ".join(self.facts.outputs)
            raise RequestError("unsupported", f"this model has no {lacking[0]} output; it has: {has}", "outputs")
        made: dict[str, Any] = {}
        for name, *parts in zip(self.facts.outputs, *outputs, strict=True):
            if name not in wanted:
                continue
            if name == "dense":
                made |= self.of_windows(job, [(part,) for part in parts])
            elif name == "sparse":
                windows = [self._weights.of(s, part) for s, part in zip(job.sequences, parts, strict=True)]
                made["sparse_embedding"] = self._weights.answer(job.request, list(windows))
            else:
                made["token_embeddings"] = self._of_tokens(job.sequences, parts)
        return with_dropped(made, job)

    def present(self, answer: dict[str, Any], request: HybridRequest, *, arrays: bool) -> dict[str, Any]:
        """See Task.present."""
        if "embedding" in answer:
            answer = super().present(answer, request, arrays=arrays)
        return with_lists(answer, arrays)

    def _of_tokens(self, sequences: list[Sequence], parts: list[np.ndarray]) -> np.ndarray:
        counted = [part[self._vectors.counted(s, None)] for s, part in zip(sequences, parts, strict=True)]
        return np.concatenate(counted)
