"""The committed data sets and the rule that splits them."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DATA = Path(__file__).resolve().parent / "data"
DEV_SHARE = 0.2

Split = Literal["train", "dev"]


@dataclass(frozen=True)
class Ticket:
    """One customer message and the desk it belongs to."""

    text: str
    label: str


@dataclass(frozen=True)
class Question:
    """One question on a paragraph; ``answer`` is empty and ``start`` 0 when the paragraph does not answer it.

    ``start`` counts characters from the beginning of ``context``.
    """

    id: str
    question: str
    context: str
    answer: str
    start: int

    @property
    def answerable(self) -> bool:
        """Whether the context holds the answer."""
        return bool(self.answer)


def split_of(key: str) -> Split:
    """The split of an example, decided by its own text: adding examples moves none of the others.

    ``key`` is a ticket's text or a document's paragraph, so that all questions on a paragraph stay together.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return "dev" if int.from_bytes(digest[:4], "big") < DEV_SHARE * 2**32 else "train"


def load_tickets(split: Split) -> list[Ticket]:
    """The tickets of one split, in file order."""
    with (DATA / "tickets.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Ticket(row["text"], row["label"]) for row in rows if row["split"] == split]


def load_questions(split: Split) -> list[Question]:
    """The questions of one split (SQuAD 2.0 format, one answer each), in file order."""
    articles = json.loads((DATA / f"documents-{split}.json").read_text(encoding="utf-8"))["data"]
    return [
        _question(item, paragraph["context"])
        for article in articles
        for paragraph in article["paragraphs"]
        for item in paragraph["qas"]
    ]


def _question(item: dict[str, Any], context: str) -> Question:
    if item["is_impossible"]:
        return Question(item["id"], item["question"], context, "", 0)
    answer = item["answers"][0]
    return Question(item["id"], item["question"], context, answer["text"], answer["answer_start"])
