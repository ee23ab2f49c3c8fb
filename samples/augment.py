"""More questions from few: the same answers in changed surroundings, and sentences turned into questions."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from samples.data import Question

_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"')\]]*(?=\s+[A-Z0-9\"'(])|$)", re.DOTALL)
_ASK = {
    "number": ("how many", "when", "what number"),
    "name": ("who", "what", "which"),
    "other": ("what", "which", "how"),
}


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph, in order, without the white space between them."""
    return _SENTENCE.findall(text)


class Augmenter:
    """Draws a new version of the training questions for each epoch."""

    def __init__(self, questions: Sequence[Question], rng: random.Random) -> None:
        self._questions = questions
        self._rng = rng
        self._contexts = sorted({q.context for q in questions})

    def epoch(self, progress: float) -> list[Question]:
        """Every question once in changed surroundings, with clozes beside them that fade out.

        Contexts start short, which makes early epochs cheap, and grow to full length with ``progress`` in [0, 1).
        """
        self._keep = 0.4 + 0.6 * progress
        drawn = [self._vary(q) for q in self._questions]
        clozes = [
            c for q in self._questions if q.answerable and self._rng.random() > progress and (c := self._cloze(q))
        ]
        return drawn + clozes

    def _vary(self, question: Question) -> Question:
        chance = self._rng.random()
        if chance < 0.05:
            question = replace(question, context=self._other(question), answer="", start=0)
        elif chance < 0.1 and question.answerable:
            question = self._without_answer(question)
        return self._surround(question, foreign=chance > 0.8)

    def _other(self, question: Question) -> str:
        return self._rng.choice([c for c in self._rng.sample(self._contexts, 2) if c != question.context])

    def _without_answer(self, question: Question) -> Question:
        """The paragraph less every sentence that holds the answer, which makes the question unanswerable."""
        kept = [s for s in sentences(question.context) if question.answer not in s]
        if not kept:
            return question
        return replace(question, context=" ".join(kept), answer="", start=0)

    def _surround(self, question: Question, foreign: bool) -> Question:
        """Drop some sentences without the answer; with ``foreign``, add some of another paragraph around the rest."""
        parts = _located(question)
        if parts is None:
            return question
        before, middle, behind, offset = parts
        before = [s for s in before if self._rng.random() < self._keep]
        behind = [s for s in behind if self._rng.random() < self._keep]
        if foreign:
            others = sentences(self._other(question))
            cut = self._rng.randrange(len(others))
            before, behind = others[cut : cut + 2] + before, behind + others[cut + 2 : cut + 4]
        head = " ".join([*before, ""])
        context = " ".join([head + middle, *behind])
        return replace(question, context=context, start=len(head) + offset if question.answerable else 0)

    def _cloze(self, question: Question) -> Question | None:
        """The answer's own sentence as a question, the answer replaced by a question word and other words dropped."""
        parts = _located(question)
        if parts is None:
            return None
        _, sentence, _, offset = parts
        words = (sentence[:offset] + " \0 " + sentence[offset + len(question.answer) :]).split()
        ask = self._rng.choice(_ASK[_kind(question.answer)])
        kept = [ask if w == "\0" else w for w in words if w == "\0" or self._rng.random() < 0.6]
        if len(kept) < 4:
            return None
        surrounded = self._surround(question, foreign=False)
        return replace(surrounded, question=" ".join(kept).rstrip(".,;:") + "?")


def _located(question: Question) -> tuple[list[str], str, list[str], int] | None:
    """Sentences before, the answer's own, those behind, and where in its own the answer starts; None if it spans two.

    Without an answer every sentence counts as before but the last.
    """
    parts = sentences(question.context)
    if not question.answerable:
        return parts[:-1], parts[-1], [], 0
    position = 0
    for index, sentence in enumerate(parts):
        position = question.context.index(sentence, position)
        offset = question.start - position
        if offset >= 0 and offset + len(question.answer) <= len(sentence):
            return parts[:index], sentence, parts[index + 1 :], offset
        position += len(sentence)
    return None


def _kind(answer: str) -> str:
    if any(c.isdigit() for c in answer):
        return "number"
    return "name" if answer[0].isupper() else "other"
