"""Readers of the public evaluation files in their own formats: each gives requests and what should come back."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Example:
    """One request of the handler and its gold answer.

    ``expected``: a label for classification; the accepted answers for questions, ``[""]`` where there is none; one
    IOB2 tag per word for entities, whose words' first and last characters are in ``words``.
    """

    payload: dict[str, Any]
    expected: Any
    words: list[tuple[int, int]] = field(default_factory=list)


def read_squad(path: Path) -> list[Example]:
    """SQuAD 1.1 or 2.0 JSON (dev-v1.1.json, dev-v2.0.json). Raises ValueError for a file of another form."""
    try:
        return list(_questions(json.loads(path.read_text(encoding="utf-8"))))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} is no SQuAD file: {type(error).__name__}: {error}") from error


def _questions(squad: Any) -> Iterator[Example]:
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                payload = {"question": question["question"], "context": paragraph["context"]}
                answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
                yield Example(payload, answers or [""])


def has_unanswerable(examples: list[Example]) -> bool:
    """Whether a question set is of SQuAD 2.0's kind."""
    return any(example.expected == [""] for example in examples)


def read_mrpc(path: Path) -> list[Example]:
    """The Microsoft Research Paraphrase Corpus' own files, or GLUE's dev.tsv of it."""
    rows = _tsv(path, "Quality", "#1 String", "#2 String")
    return [Example({"text": r["#1 String"], "text_pair": r["#2 String"]}, r["Quality"]) for r in rows]


def read_sst2(path: Path) -> list[Example]:
    """GLUE's dev.tsv of SST-2."""
    return [Example({"text": row["sentence"]}, row["label"]) for row in _tsv(path, "sentence", "label")]


def read_labels(path: Path) -> list[Example]:
    """Any TSV with columns ``text`` and ``label``; where there is a column ``split``, its rows ``dev``."""
    rows = _tsv(path, "text", "label")
    return [Example({"text": row["text"]}, row["label"]) for row in rows if row.get("split", "dev") == "dev"]


def read_conll(path: Path) -> list[Example]:
    """CoNLL-2003 columns: the word first, the tag last, an empty line between sentences; IOB1 or IOB2 tags."""
    examples = []
    sentence: list[tuple[str, str]] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            sentence.append((columns[0], columns[-1]))
        elif sentence:
            examples.append(_sentence(sentence))
            sentence = []
    return examples


def _sentence(sentence: list[tuple[str, str]]) -> Example:
    words, end = [], -1
    for word, _ in sentence:
        words.append((end + 1, end + 1 + len(word)))
        end = words[-1][1]
    text = " ".join(word for word, _ in sentence)
    return Example({"text": text, "aggregation": "first"}, to_iob2([tag for _, tag in sentence]), words)


def to_iob2(tags: list[str]) -> list[str]:
    """Tags in which every entity begins with B-, from tags in which only one that touches another does."""
    fixed, previous = [], "O"
    for tag in tags:
        begins = tag.startswith("I-") and previous[2:] != tag[2:]
        fixed.append(f"B-{tag[2:]}" if begins else tag)
        previous = tag
    return fixed


def _tsv(path: Path, *columns: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise ValueError(f"{path.name} has no rows with a column {missing[0]!r}")
    return rows


READERS: dict[str, Callable[[Path], list[Example]]] = {
    "squad": read_squad,
    "mrpc": read_mrpc,
    "sst2": read_sst2,
    "conll": read_conll,
    "labels": read_labels,
}
"""By the name that ``--task`` takes."""
