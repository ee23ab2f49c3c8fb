"""Sample 2: find the answer to a question in a paragraph, or say that it holds none."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import BertForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerFast

from samples.augment import Augmenter
from samples.base import load_base
from samples.batches import Features, by_length, padded
from samples.data import Question, load_questions
from samples.recipe import Batch, Recipe, Sample
from samples.squad import score
from samples.windows import Window, best_span, make_windows


class DocumentQA(Sample):
    """BertForQuestionAnswering: first and last token of the answer, [CLS] for none."""

    name = "document_qa"
    head = ("qa_outputs",)
    recipe = Recipe(epochs=8, batch_size=16, learning_rate=1e-3)

    def new_model(self, **options: Any) -> PreTrainedModel:
        """The base encoder under a new span head."""
        return load_base(BertForQuestionAnswering, **options)

    def epoch(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, progress: float) -> Iterator[Batch]:
        """The training questions, augmented anew, in random batches."""
        questions = Augmenter(load_questions("train"), rng).epoch(progress)
        features = [f for question in questions for f in _training_features(tokenizer, question)]
        return by_length(features, self.recipe.batch_size, rng)

    def evaluate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
        """SQuAD 2.0 EM and F1 on the dev questions, in percent: over all, and each kind alone."""
        questions = load_questions("dev")
        answers = answer(model, tokenizer, questions)
        known = [(q.answer, a) for q, a in zip(questions, answers, strict=True) if q.answerable]
        unknown = [(q.answer, a) for q, a in zip(questions, answers, strict=True) if not q.answerable]
        return {
            **score(known + unknown),
            **{f"{key}, answerable": value for key, value in score(known).items()},
            "accuracy, unanswerable": score(unknown)["EM"],
        }


@torch.inference_mode()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], threshold: float = 0.0
) -> list[str]:
    """One answer per question, "" for none: the likeliest span whose margin over "no answer" exceeds ``threshold``."""
    model.eval()
    jobs = [(i, w) for i, q in enumerate(questions) for w in make_windows(tokenizer, q.question, q.context)]
    jobs.sort(key=lambda job: len(job[1].offsets))
    best: dict[int, tuple[float, str]] = {}
    for at in range(0, len(jobs), 16):
        group = jobs[at : at + 16]
        logits = model(**padded([window.features for _, window in group]))
        for (index, window), start, end in zip(group, logits.start_logits, logits.end_logits, strict=True):
            margin, first, last = best_span(start, end, window)
            text = questions[index].context[first:last] if margin > threshold else ""
            best[index] = max(best.get(index, (-torch.inf, "")), (margin, text))
    return [best[index][1] for index in range(len(questions))]


def _training_features(tokenizer: PreTrainedTokenizerFast, question: Question) -> Iterator[Features]:
    for window in make_windows(tokenizer, question.question, question.context):
        yield _with_target(window, question)


def _with_target(window: Window, question: Question) -> Features:
    first, last = window.target(question.start, len(question.answer))
    return {**window.features, "start_positions": first, "end_positions": last}
