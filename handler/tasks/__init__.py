"""The tasks, by the names that setup configs and archives use."""

from __future__ import annotations

from typing import Any

from handler.tasks.base import Task
from handler.tasks.embedding import Embedding
from handler.tasks.fill_mask import FillMask
from handler.tasks.question_answering import QuestionAnswering
from handler.tasks.rerank import Rerank
from handler.tasks.sequence_classification import SequenceClassification
from handler.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task[Any]]] = {
    "sequence_classification": SequenceClassification,
    "question_answering": QuestionAnswering,
    "token_classification": TokenClassification,
    "embedding": Embedding,
    "rerank": Rerank,
    "fill_mask": FillMask,
}
