"""Official measures, each from a library that is kept up: what the handler answered against what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.accuracy.datasets import Example

Answers = list[dict[str, Any]]


def squad(examples: list[Example], answers: Answers, labels: list[str]) -> dict[str, float]:
    """Exact match and F1 in percent (torchmetrics); for SQuAD 2.0 an empty answer is right where there is none."""
    from torchmetrics.functional.text.squad import squad as score

    predicted = [{"prediction_text": answer["answer"], "id": str(i)} for i, answer in enumerate(answers)]
    target = [
        {"answers": {"answer_start": [0] * len(e.expected), "text": e.expected}, "id": str(i)}
        for i, e in enumerate(examples)
    ]
    found = score(predicted, target)
    return {"exact_match": float(found["exact_match"]), "f1": float(found["f1"])}


def binary(examples: list[Example], answers: Answers, labels: list[str]) -> dict[str, float]:
    """Accuracy and the positive class' F1 in percent (scikit-learn), as GLUE reports MRPC."""
    from sklearn.metrics import accuracy_score, f1_score

    expected, predicted = _indices(examples, answers, labels)
    return {"accuracy": 100 * accuracy_score(expected, predicted), "f1": 100 * f1_score(expected, predicted)}


def classes(examples: list[Example], answers: Answers, labels: list[str]) -> dict[str, float]:
    """Accuracy and macro F1 in percent (scikit-learn)."""
    from sklearn.metrics import accuracy_score, f1_score

    expected, predicted = _indices(examples, answers, labels)
    macro = f1_score(expected, predicted, average="macro")
    return {"accuracy": 100 * accuracy_score(expected, predicted), "macro_f1": 100 * float(macro)}


def entities(examples: list[Example], answers: Answers, labels: list[str]) -> dict[str, float]:
    """Precision, recall and F1 in percent of exact entities, as conlleval counts them (nervaluate, strict)."""
    from nervaluate import Evaluator

    expected = [example.expected for example in examples]
    predicted = [tags_of(answer["entities"], example) for answer, example in zip(answers, examples, strict=True)]
    names = sorted({tag[2:] for sentence in [*expected, *predicted] for tag in sentence if tag != "O"})
    strict = Evaluator(expected, predicted, tags=names, loader="list").evaluate()["overall"]["strict"]
    return {"precision": 100 * strict.precision, "recall": 100 * strict.recall, "f1": 100 * strict.f1}


def tags_of(found: list[dict[str, Any]], example: Example) -> list[str]:
    """The handler's entities as one IOB2 tag for each word they touch."""
    tags = ["O"] * len(example.words)
    for entity in found:
        prefix = "B"
        for index, (start, end) in enumerate(example.words):
            if start < entity["end"] and entity["start"] < end and tags[index] == "O":
                tags[index] = f"{prefix}-{entity['label']}"
                prefix = "I"
    return tags


def _indices(examples: list[Example], answers: Answers, labels: list[str]) -> tuple[list[int], list[int]]:
    """Labels as indices: files number them where checkpoints may name them."""

    def index(label: str) -> int:
        if label in labels:
            return labels.index(label)
        if label.isdigit() and int(label) < len(labels):
            return int(label)
        raise ValueError(f"the file's label {label!r} is none of the model's: {', '.join(labels)}")

    return [index(e.expected) for e in examples], [index(answer["label"]) for answer in answers]


METRICS: dict[str, Callable[[list[Example], Answers, list[str]], dict[str, float]]] = {
    "squad": squad,
    "mrpc": binary,
    "sst2": classes,
    "conll": entities,
    "labels": classes,
}
"""By task, as ``datasets.READERS``."""
