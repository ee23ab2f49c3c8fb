"""Sample 1: which of a shop's six desks a customer's message belongs to."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from samples.base import load_base
from samples.batches import by_length, padded
from samples.data import load_tickets
from samples.recipe import Batch, Recipe, Sample

LABELS = ("account", "billing", "delivery", "feedback", "product_question", "returns")
MAX_LENGTH = 128


class TicketRouting(Sample):
    """BertForSequenceClassification: six labels, one per message."""

    name = "ticket_routing"
    head = ("classifier",)
    recipe = Recipe(epochs=10, batch_size=16, learning_rate=5e-4)

    def new_model(self, **options: Any) -> PreTrainedModel:
        """The base encoder with its pooler under a new six-label classifier."""
        return load_base(
            BertForSequenceClassification,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
            **options,
        )

    def epoch(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, progress: float) -> Iterator[Batch]:
        """The training messages in random batches."""
        tickets = load_tickets("train")
        encoded = tokenizer([t.text for t in tickets], truncation=True, max_length=MAX_LENGTH)
        features = [
            {**{key: encoded[key][row] for key in encoded}, "labels": LABELS.index(ticket.label)}
            for row, ticket in enumerate(tickets)
        ]
        return by_length(features, self.recipe.batch_size, rng)

    def evaluate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
        """Accuracy and macro F1 on the dev messages, in percent."""
        tickets = load_tickets("dev")
        predicted = [LABELS[index] for index in _predict(model, tokenizer, [t.text for t in tickets])]
        truth = [t.label for t in tickets]
        return {
            "accuracy": 100 * sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth),
            "macro F1": 100 * macro_f1(truth, predicted),
        }


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean over all labels of each label's F1; 0 for a label that occurs on neither side."""
    scores = []
    for label in LABELS:
        right = sum(t == p == label for t, p in zip(truth, predicted, strict=True))
        scores.append(2 * right / max(1, truth.count(label) + predicted.count(label)))
    return sum(scores) / len(scores)


@torch.inference_mode()
def _predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    model.eval()
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
    features = [{key: encoded[key][row] for key in encoded} for row in range(len(texts))]
    batches = [padded(features[i : i + 32]) for i in range(0, len(features), 32)]
    return [index for batch in batches for index in model(**batch).logits.argmax(-1).tolist()]
