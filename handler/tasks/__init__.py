"""The tasks, by the names that setup configs and archives use."""

from __future__ import annotations

from typing import Any

from handler.tasks.base import Task
from handler.tasks.embedding import Embedding
from handler.tasks.fill_mask import FillMask
from handler.tasks.hybrid_embedding import HybridEmbedding
from handler.tasks.multi_vector import MultiVectorEmbedding
from handler.tasks.question_answering import QuestionAnswering
from handler.tasks.rerank import Rerank
from handler.tasks.sequence_classification import SequenceClassification
from handler.tasks.sparse_embedding import SparseEmbedding
from handler.tasks.token_classification import TokenClassification
from handler.tasks.zero_shot import ZeroShotClassification

TASKS: dict[str, type[Task[Any]]] = {
    "sequence_classification": SequenceClassification,
    "question_answering": QuestionAnswering,
    "token_classification": TokenClassification,
    "embedding": Embedding,
    "rerank": Rerank,
    "fill_mask": FillMask,
    "zero_shot_classification": ZeroShotClassification,
    "sparse_embedding": SparseEmbedding,
    "multi_vector_embedding": MultiVectorEmbedding,
    "hybrid_embedding": HybridEmbedding,
}
