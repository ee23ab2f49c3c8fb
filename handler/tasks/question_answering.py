"""Extractive question answering over contexts of any length.

Start and end are chosen together, inside the context, in order; the scores are those of transformers' 4.x
question-answering pipeline: softmax over a window's context and its first token, start times end, summed over the
spans that read the same; only that a sum over 1, which overlapping windows can give, is reported as 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from handler.characters import is_unspaced, trimmed, whole
from handler.packing import Arrays
from handler.schemas import QuestionAnswer, QuestionRequest, Request
from handler.tasks.base import Job, Task, softmax, with_dropped
from handler.tokenizer import Input, Sequence

SPARE = 10
"""Spans looked at beyond twice the number wanted, as many of them end up as the same words."""
TINY = 1e-30
"""Keeps the logarithm of a probability that has underflown finite."""


@dataclass(slots=True)
class Candidate:
    """A span of characters of the context and its probability within its window."""

    score: float
    start: int
    end: int


class QuestionAnswering(Task[QuestionRequest]):
    """The model's outputs are start and end logits, [S] each; a long context is read in overlapping windows."""

    request = QuestionRequest
    answer = QuestionAnswer
    per_token = True
    offsets = True
    default_truncation = "stride"

    def input(self, request: QuestionRequest) -> Input:
        """See Task.input."""
        return request.question, request.context

    def stride(self, request: Request) -> int:
        """See Task.stride."""
        own = request.stride if isinstance(request, QuestionRequest) else None
        return self.config.stride if own is None else own

    def finish(self, job: Job[QuestionRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish."""
        request = job.request
        wanted = request.n_best or self.config.n_best
        longest = request.max_answer_length or self.config.max_answer_length
        align = self.config.align_to_words if request.align_to_words is None else request.align_to_words
        cut = Cut(request.context, align)
        candidates: dict[str, Candidate] = {}
        no_answer = 1.0
        for sequence, (start, end) in zip(job.sequences, outputs, strict=True):
            window = Window(sequence, start, end)
            no_answer = min(no_answer, window.no_answer)
            for candidate in window.candidates(2 * wanted + SPARE, longest, cut):
                known = candidates.setdefault(request.context[candidate.start : candidate.end].lower(), candidate)
                if known is not candidate:
                    known.score = min(1.0, known.score + candidate.score)
        ranked = sorted(candidates.values(), key=lambda c: -c.score)[:wanted]
        return self._answer(job, ranked, no_answer, wanted)

    def _answer(
        self, job: Job[QuestionRequest], ranked: list[Candidate], no_answer: float, wanted: int
    ) -> dict[str, Any]:
        spans = [self._span(job.request.context, candidate) for candidate in ranked]
        answer: dict[str, Any] = {"answer": "", "score": no_answer, "start": 0, "end": 0}
        if spans and not (self.config.null_answer and self._withheld(job.request, ranked[0].score, no_answer)):
            answer = dict(spans[0])
        if self.config.null_answer:
            answer["no_answer_score"] = no_answer
        if wanted > 1:
            answer["answers"] = spans
        return with_dropped(answer, job)

    def _withheld(self, request: QuestionRequest, score: float, no_answer: float) -> bool:
        """SQuAD 2.0's rule: a difference of logits, which within a window is one of log probabilities."""
        threshold = self.config.null_threshold if request.null_threshold is None else request.null_threshold
        return math.log(max(no_answer, TINY)) - math.log(max(score, TINY)) > threshold

    @staticmethod
    def _span(context: str, candidate: Candidate) -> dict[str, Any]:
        text = context[candidate.start : candidate.end]
        return {"answer": text, "score": candidate.score, "start": candidate.start, "end": candidate.end}


class Window:
    """One window's probabilities. ``start`` and ``end``: logits [S]; the sequence has its offsets."""

    def __init__(self, sequence: Sequence, start: np.ndarray, end: np.ndarray) -> None:
        assert sequence.encoding is not None
        assert sequence.offsets is not None
        self._encoding = sequence.encoding
        self._offsets = sequence.offsets
        inside = np.array([part == 1 for part in sequence.encoding.sequence_ids])
        self._tokens = np.flatnonzero(inside)
        kept = np.concatenate(([0], self._tokens))
        start_probability = softmax(start[kept].astype(np.float64))
        end_probability = softmax(end[kept].astype(np.float64))
        self.no_answer = float(start_probability[0] * end_probability[0])
        self._start, self._end = start_probability[1:], end_probability[1:]

    def candidates(self, count: int, longest: int, cut: Cut) -> Iterator[Candidate]:
        """The ``count`` most probable spans of at most ``longest`` tokens, as characters of the context.

        Spans of nothing but white space are left out.
        """
        for score, first, last in self.token_spans(count, longest):
            tokens = self._offsets[first][0], self._offsets[last][1]
            start, end = cut.span(tokens, (self._word(first)[0], self._word(last)[1]))
            if start < end:
                yield Candidate(score, start, end)

    def token_spans(self, count: int, longest: int) -> list[tuple[float, int, int]]:
        """The same spans as first and last token of the window."""
        spans = best_spans(self._start, self._end, count, longest)
        return [(score, int(self._tokens[first]), int(self._tokens[last])) for score, first, last in spans]

    def _word(self, token: int) -> tuple[int, int]:
        """The characters of the token's word, as the tokenizer understands words; the token's own where it does not."""
        word = self._encoding.token_to_word(token)
        characters = None if word is None else self._encoding.word_to_chars(word, 1)
        return characters or self._offsets[token]


@dataclass(frozen=True, slots=True)
class Cut:
    """How an answer is cut out of its context.

    ``align``: at words (True), as transformers' 4.x pipeline does unless told otherwise; at the model's tokens (False);
    or at words of scripts that put spaces between them and at tokens elsewhere (None), where a "word" may be a whole
    sentence. In no case within a letter and its marks, or with white space around.
    """

    context: str
    align: bool | None

    def span(self, tokens: tuple[int, int], words: tuple[int, int]) -> tuple[int, int]:
        """The characters of an answer that covers ``tokens``, the outer ones being parts of ``words``."""
        (start, end), (first, last) = tokens, words
        if self.align:
            start, end = min(start, first), max(end, last)
        elif self.align is None:
            while start > first and not self._border(start):
                start -= 1
            while end < last and not self._border(end):
                end += 1
        start, end = whole(self.context, *trimmed(self.context, start, end))
        return trimmed(self.context, start, end)

    def _border(self, place: int) -> bool:
        """Whether a word may end before this place, one of its characters being of a script without spaces."""
        if not 0 < place < len(self.context):
            return True
        return is_unspaced(self.context[place - 1]) or is_unspaced(self.context[place])


def best_spans(start: np.ndarray, end: np.ndarray, count: int, longest: int) -> list[tuple[float, int, int]]:
    """The ``count`` pairs first <= last < first + longest of largest start[first] * end[last], best first.

    start, end: [S]. Works on the S x longest band of allowed pairs, not on all S x S.
    """
    size = len(start)
    if size == 0:
        return []
    width = min(longest, size)
    padded = np.concatenate((end, np.zeros(width - 1)))
    band = start[:, None] * np.lib.stride_tricks.sliding_window_view(padded, width)
    allowed = np.arange(size)[:, None] + np.arange(width)[None, :] < size
    flat = np.where(allowed, band, -1.0).ravel()
    count = min(count, int(allowed.sum()))
    chosen = np.argpartition(-flat, count - 1)[:count] if count < flat.size else np.arange(flat.size)
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")][:count]
    return [(float(flat[i]), int(i) // width, int(i) // width + int(i) % width) for i in chosen]
