"""The requests that ``builder tune`` measures with: a length distribution by name, or a file of one's own."""

from __future__ import annotations

import json
import random
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any

import tokenizers

from builder.errors import BuildError
from handler.archive import ArchiveFacts
from handler.spellings import Task

MIXES = ("short", "uniform", "squad", "full")
"""Tokens of a text: 8 to 48; uniform in [S/8, S] for the archive's longest S; normal with mean 178 and deviation 65
within [32, 384], as SQuAD's windows are; S."""
REQUESTS = 256
_QUESTION = "Who was the first to see it?"


def make_requests(mix: str, folder: Path, facts: ArchiveFacts, longest: int) -> list[bytes]:
    """Bodies of requests for an extracted archive, of lengths drawn from ``mix`` or read from the file it names.

    A line of a file is a request's JSON object, or a text. Texts that are drawn consist of words of the archive's
    vocabulary, the frequent ones more often. The same every time. Raises BuildError in one line.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    mask = "" if facts.mask_id is None else tokenizer.id_to_token(facts.mask_id) or ""
    if mix in MIXES:
        texts: list[Any] = _texts(tokenizer, _lengths(mix, longest))
    else:
        texts = _lines(Path(mix))
    payloads = (text if isinstance(text, dict) else _payload(facts.task, text, mask) for text in texts)
    return [json.dumps(payload, ensure_ascii=False).encode() for payload in payloads]


def _lengths(mix: str, longest: int) -> list[int]:
    generator = random.Random(0)
    if mix == "short":
        lengths = [generator.randint(8, 48) for _ in range(REQUESTS)]
    elif mix == "uniform":
        lengths = [generator.randint(max(1, longest // 8), longest) for _ in range(REQUESTS)]
    elif mix == "squad":
        lengths = [min(384, max(32, round(generator.gauss(178, 65)))) for _ in range(REQUESTS)]
    else:
        lengths = [longest] * REQUESTS
    return [min(length, longest) for length in lengths]


def _texts(tokenizer: tokenizers.Tokenizer, lengths: list[int]) -> list[str]:
    """Zipf's law in the vocabulary's order, which is that of frequency or near it. Two tokens are the special ones."""
    generator = random.Random(1)
    ranked = (token.lstrip("Ġ▁") for token, _ in sorted(tokenizer.get_vocab().items(), key=itemgetter(1)))
    words = [word for word in ranked if word.isascii() and word.isalpha() and len(word) > 1] or ["a"]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    return [" ".join(generator.choices(words, cum_weights=weights, k=max(1, n - 2))) for n in lengths]


def _lines(path: Path) -> list[Any]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise BuildError(f"no mix and no file {str(path)!r}; mixes are {', '.join(MIXES)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path.name} cannot be read as text ({error})") from error
    if not lines:
        raise BuildError(f"{path.name} holds no requests")
    try:
        return [json.loads(line) if line.startswith("{") else line for line in lines]
    except ValueError as error:
        raise BuildError(f"{path.name}: a line that begins with {{ is not JSON ({error})") from error


_LABELS = ["billing", "delivery", "a complaint", "praise", "technical help"]


def _payload(task: Task, text: str, mask: str) -> dict[str, Any]:
    if task == "question_answering":
        return {"question": _QUESTION, "context": text}
    if task == "rerank":
        return {"query": _QUESTION, "texts": [text]}
    if task == "fill_mask":
        return {"text": f"{text} {mask}"}
    if task == "zero_shot_classification":
        return {"text": text, "candidate_labels": _LABELS}
    return {"text": text}
