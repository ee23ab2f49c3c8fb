"""Entities of a text, with character offsets.

Labels, scores and spans are those of transformers' token-classification pipeline, with three differences: an entity's
word is cut out of the given text, where the pipeline puts it together from tokens; it never ends between a letter and
its marks; and where words are told by white space, every kind of it counts, not the space alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from handler.characters import is_space, whole
from handler.config import Aggregation
from handler.packing import Arrays
from handler.schemas import TokenAnswer, TokenRequest
from handler.tasks.base import Job, Task, softmax, with_dropped
from handler.tokenizer import Input, Sequence

OUTSIDE = "O"
"""The label of what is no entity."""


@dataclass(slots=True)
class Piece:
    """A token or a word: characters [start, end) of the text, and each label's probability."""

    start: int
    end: int
    scores: np.ndarray
    index: int
    continues: bool = False
    """Whether it is not the first token of its word."""


@dataclass(slots=True)
class Found:
    """A labelled span; ``index`` is the token's place in its window where nothing was joined."""

    label: str
    score: float
    start: int
    end: int
    index: int | None = None


class TokenClassification(Task[TokenRequest]):
    """The model's output is logits [S, labels]."""

    request = TokenRequest
    answer = TokenAnswer
    per_token = True
    offsets = True
    default_truncation = "stride"

    def input(self, request: TokenRequest) -> Input:
        """See Task.input."""
        return request.text

    def finish(self, job: Job[TokenRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        text = job.request.text
        how = job.request.aggregation or self.config.aggregation
        found: list[Found] = []
        for sequence, (logits,) in zip(job.sequences, outputs, strict=True):
            pieces = self._pieces(sequence, softmax(logits), text)
            found += [entity for entity in self.entities(pieces, how) if entity.label != OUTSIDE]
        if len(job.sequences) > 1:
            found = without_overlaps(found)
        return with_dropped({"entities": [_as_answer(entity, text) for entity in found]}, job)

    def entities(self, pieces: list[Piece], how: Aggregation) -> list[Found]:
        """Tokens joined to entities: not at all (none), by labels (simple), or words first (first, average, max)."""
        if how in ("first", "average", "max"):
            pieces = [joined(word, how) for word in words(pieces)]
        labelled = [self._labelled(piece) for piece in pieces]
        return labelled if how == "none" else list(grouped(labelled))

    def _labelled(self, piece: Piece) -> Found:
        index = int(piece.scores.argmax())
        return Found(self.facts.label(index), float(piece.scores[index]), piece.start, piece.end, piece.index)

    def _pieces(self, sequence: Sequence, scores: np.ndarray, text: str) -> list[Piece]:
        encoding = sequence.encoding
        assert encoding is not None
        assert sequence.offsets is not None
        pieces = []
        spans = zip(sequence.offsets, encoding.special_tokens_mask, encoding.word_ids, strict=True)
        previous: int | None = None
        for index, ((start, end), special, word) in enumerate(spans):
            if special:
                continue
            if self.tokenizer.knows_words:
                continues = word == previous
            else:
                continues = start > 0 and not any(map(is_space, text[start - 1 : start + 1]))
            continues = continues and encoding.ids[index] != self.tokenizer.unknown_id  # as the pipeline sees it
            pieces.append(Piece(start, end, scores[index], index, continues))
            previous = word
        return pieces


def words(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Tokens grouped by the word they belong to."""
    group: list[Piece] = []
    for piece in pieces:
        if group and not piece.continues:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def joined(word: list[Piece], how: Aggregation) -> Piece:
    """One word's tokens as one piece, whose probabilities are the first token's, the mean, or the surest token's."""
    if how == "first":
        scores = word[0].scores
    elif how == "max":
        scores = max((piece.scores for piece in word), key=np.max)
    else:
        scores = np.mean([piece.scores for piece in word], axis=0)
    return Piece(word[0].start, word[-1].end, scores, word[0].index)


def grouped(found: Iterable[Found]) -> Iterator[Found]:
    """Neighbours of one tag as one entity; a B- label begins a new one. The score is the mean."""
    group: list[Found] = []
    for entity in found:
        if group and (_tag(entity.label) != _tag(group[-1].label) or entity.label.startswith("B-")):
            yield _merged(group)
            group = []
        group.append(entity)
    if group:
        yield _merged(group)


def _merged(group: list[Found]) -> Found:
    score = sum(entity.score for entity in group) / len(group)
    # The pipeline's quirk for labels such as "B-X-Y" is kept: what follows the first dash is the name.
    return Found(group[0].label.split("-", 1)[-1], score, group[0].start, group[-1].end)


def _tag(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def without_overlaps(found: list[Found]) -> list[Found]:
    """Entities of overlapping windows: of two that overlap the longer stays, of equally long ones the surer."""
    kept: list[Found] = []
    for entity in sorted(found, key=lambda e: e.start):
        if kept and kept[-1].start <= entity.start < kept[-1].end:
            if (entity.end - entity.start, entity.score) > (kept[-1].end - kept[-1].start, kept[-1].score):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept


def _as_answer(entity: Found, text: str) -> dict[str, Any]:
    start, end = entity.start, entity.end
    if entity.index is None:  # a token may end between a letter and its marks, which the normalizer takes off
        start, end = whole(text, start, end)
    answer: dict[str, Any] = {"label": entity.label, "score": entity.score, "word": text[start:end]}
    answer |= {"start": start, "end": end}
    if entity.index is not None:
        answer["index"] = entity.index
    return answer
