"""What may stand in the place of a mask token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from handler.characters import is_space, is_unspaced
from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import FillMaskAnswer, FillMaskRequest
from handler.tasks.base import Job, Task, best, softmax, with_dropped
from handler.tokenizer import Input, Sequence, Tokenizer

LOGITS_PER_PASS = 2**25
"""128 MiB of fp32: an answer's logits are a vocabulary wide for every token."""
DEFAULT_TOP_K = 5


@dataclass(slots=True)
class Mask:
    """A mask's characters in the text, its logits [V], and how far from its window's nearer edge it stands."""

    start: int
    end: int
    logits: np.ndarray
    depth: int


class FillMask(Task[FillMaskRequest]):
    """The model's output is logits [S, V], of which the rows of masks are kept.

    A mask that two windows share is read where it has more around it.
    """

    request = FillMaskRequest
    answer = FillMaskAnswer
    per_token = True
    offsets = True

    def input(self, request: FillMaskRequest) -> Input:
        """See Task.input."""
        return request.text

    def pass_tokens(self, budget: int) -> int:
        """See Task.pass_tokens."""
        return min(budget, LOGITS_PER_PASS // self.tokenizer.vocabulary_size)

    def keep(self, sequence: Sequence, outputs: Arrays) -> Arrays:
        """See Task.keep: logits [masks, V], a copy, so that the pass's own can go."""
        return (outputs[0][self._places(sequence)],)

    def finish(self, job: Job[FillMaskRequest], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task.finish. Raises RequestError where the text has no mask or its answer would be too large."""
        masks = self._masks(job, outputs)
        if not masks:
            token = self.tokenizer.token(self.facts.mask_id)
            where = " within the tokens that were kept" if job.dropped else ""
            raise RequestError("invalid_request", f"the text holds no {token}{where}", "text")
        count = job.request.top_k or self.config.top_k or DEFAULT_TOP_K
        if len(masks) * count * len(job.request.text) > self.config.limits.max_characters:
            raise RequestError("too_large", f"{len(masks)} masks with {count} candidates each; lower top_k", "top_k")
        return with_dropped({"masks": [self._candidates(mask, job.request.text, count) for mask in masks]}, job)

    def _masks(self, job: Job[FillMaskRequest], outputs: list[Arrays]) -> list[Mask]:
        masks: dict[tuple[int, int], Mask] = {}
        for sequence, (logits,) in zip(job.sequences, outputs, strict=True):
            assert sequence.offsets is not None
            for place, row in zip(self._places(sequence), logits, strict=True):
                span = sequence.offsets[place]
                depth = min(place, len(sequence.ids) - 1 - place)
                if span not in masks or masks[span].depth < depth:
                    masks[span] = Mask(*span, row, depth)
        return [masks[span] for span in sorted(masks)]

    def _places(self, sequence: Sequence) -> list[int]:
        return [place for place, token in enumerate(sequence.ids) if token == self.facts.mask_id]

    def _candidates(self, mask: Mask, text: str, count: int) -> list[dict[str, Any]]:
        scores = softmax(mask.logits)
        place = Place(self.tokenizer, text, mask.start, mask.end, self.facts.mask_id)
        candidates = []
        for index in best(scores, count):
            candidate = {"token": self.tokenizer.decode([index]), "token_id": index, "score": float(scores[index])}
            candidates.append({**candidate, "sequence": place.filled(index)})
        return candidates


class Place:
    """Where a mask stands: characters [start, end) of a text, which may include white space that the mask has taken.

    The text stays as it was sent, where transformers' pipeline decodes it anew from its tokens; only how a token joins
    its neighbours is read off the tokenizer's decoder.
    """

    def __init__(self, tokenizer: Tokenizer, text: str, start: int, end: int, mask_id: int | None) -> None:
        self._tokenizer = tokenizer
        taken = text[start:end]
        before, after = text[:start], text[end:]
        self._before = before + taken[: len(taken) - len(taken.lstrip())]
        self._after = taken[len(taken.rstrip()) :] + after
        self._left = tokenizer.edge(before, last=True)
        self._right = tokenizer.edge(after, last=False)
        # The pipeline decodes without special tokens, but for a text with several masks, which would be lost.
        alone = mask_id is None or tokenizer.token(mask_id) not in before + after
        self._silent = tokenizer.special_ids if alone else frozenset()

    def filled(self, index: int) -> str:
        """The text with the token in the mask's place."""
        before, after = self._before, self._after
        joined, piece = (True, "") if index in self._silent else self._joined(index)
        if not piece.strip():
            return before.rstrip() + piece + after if before.strip() else after.lstrip()
        suffix = self._tokenizer.word_end
        if suffix is not None and not self._tokenizer.token(index).endswith(suffix):
            after = after.lstrip()
        if joined:
            before = before.rstrip()
        elif before and not is_space(before[-1]) and self._parts(before[-1], piece[:1]):
            before += " "
        return before + piece + self._gap_behind(index, piece) + after

    def _joined(self, index: int) -> tuple[bool, str]:
        """Whether the token continues the one on its left, and its text there ("ing" of "##ing")."""
        whole = self._tokenizer.decode([index])
        if self._left is None:
            return False, whole.strip() or whole
        left = self._tokenizer.decode([self._left])
        both = self._tokenizer.decode([self._left, index])
        behind = both[len(left) :] if both.startswith(left) else whole
        # A left neighbour that is a space itself stands in the text already.
        return bool(left.strip()) and not behind[:1].isspace(), behind.strip() or behind

    def _gap_behind(self, index: int, piece: str) -> str:
        """A space where the token and what follows would run together that the decoder keeps apart."""
        if self._right is None or is_space(self._after[0]) or not self._parts(piece[-1:], self._after[0]):
            return ""
        right = self._tokenizer.decode([self._right]).strip()
        both = self._tokenizer.decode([index, self._right])
        return " " if right and both.endswith(right) and both[: -len(right)][-1:].isspace() else ""

    def _parts(self, left: str, right: str) -> bool:
        """Whether the decoder's space is meant: WordPiece, whose tokens have none, sets one before brackets too."""
        if not self._tokenizer.knows_words:
            return True
        return all(side.isalnum() and not is_unspaced(side) for side in (left, right))
