"""What is asked: the samples' own texts, as they are or cut and joined to stated lengths, and texts made of a
vocabulary's words. All are the same every time."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from benchmarks.accuracy.datasets import read_labels
from benchmarks.machine import ROOT
from benchmarks.workloads import DISTRIBUTIONS

DATA = ROOT / "samples" / "data"
TICKETS = DATA / "tickets.tsv"
MIXES = ("data", "uniform", "squad")
"""The texts as they are, or cut and joined to lengths drawn from one of :data:`benchmarks.workloads.DISTRIBUTIONS`."""
TEXTS = 512
"""Of a mix."""


def payloads(task: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Requests of a task: the texts, or for questions those of the sample's own documents."""
    if task != "question_answering":
        return [{"text": text} for text in texts]
    documents = json.loads((DATA / "documents-dev.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for document in documents for paragraph in document["paragraphs"]]
    return [{"question": q["question"], "context": p["context"]} for p in paragraphs for q in p["qas"]]


def tickets(file: Path = TICKETS) -> list[str]:
    """The texts of a TSV that :func:`benchmarks.accuracy.datasets.read_labels` reads."""
    return [example.payload["text"] for example in read_labels(file)]


def mixed(mix: str, texts: Sequence[str], tokenizer_file: Path, longest: int) -> list[str]:
    """Texts for one of MIXES; ``longest``: in tokens, the two special ones included."""
    if mix == "data":
        return list(texts)
    lengths = DISTRIBUTIONS[mix](TEXTS, longest)
    generator = random.Random(0)
    generator.shuffle(lengths)
    return of_lengths(lengths, texts, tokenizer_file, generator)


def of_lengths(
    lengths: Sequence[int], texts: Sequence[str], tokenizer_file: Path, generator: random.Random
) -> list[str]:
    """Texts in random order, cut and joined to lengths in tokens, the two special ones included."""
    tokenizer = _plain_tokenizer(tokenizer_file)
    order = list(texts)
    generator.shuffle(order)
    endless = itertools.cycle(order)
    return [_joined(tokenizer, endless, length - 2) for length in lengths]


def mean_tokens(texts: Sequence[str], tokenizer_file: Path) -> float:
    """Tokens of a text on average, special ones included."""
    return float(np.mean([len(encoding) for encoding in _plain_tokenizer(tokenizer_file).encode_batch(list(texts))]))


def of_words(vocabulary: Mapping[str, int], shortest: int, longest: int) -> Iterator[str]:
    """Endless texts of so many of a vocabulary's words, the earlier ones more often (Zipf's law in the vocabulary's
    order, which for BERT's is that of frequency)."""
    ranked = [word for word, _ in sorted(vocabulary.items(), key=itemgetter(1)) if word.isascii() and word.isalpha()]
    weights = list(accumulate(1 / rank for rank in range(1, len(ranked) + 1)))
    generator = random.Random(0)
    while True:
        yield " ".join(generator.choices(ranked, cum_weights=weights, k=generator.randint(shortest, longest)))


def _plain_tokenizer(file: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _joined(tokenizer: tokenizers.Tokenizer, texts: itertools.cycle[str], tokens: int) -> str:
    """Whole texts one after the other, the last one cut so that there are ``tokens`` tokens."""
    text = next(texts)
    while len(encoding := tokenizer.encode(text, add_special_tokens=False)) < tokens:
        text = f"{text} {next(texts)}"
    return text[: encoding.offsets[max(1, tokens) - 1][1]]
