"""What may stand in the place of a mask token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from handler.errors import RequestError
from handler.packing import Arrays
from handler.schemas import FillMaskAnswer, FillMaskRequest
from handler.tasks.base import Job, Task, best, softmax, with_dropped
from handler.tokenizer import Input, Sequence

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
            assert sequence.encoding is not None
            for place, row in zip(self._places(sequence), logits, strict=True):
                span = sequence.encoding.offsets[place]
                depth = min(place, len(sequence.ids) - 1 - place)
                if span not in masks or masks[span].depth < depth:
                    masks[span] = Mask(*span, row, depth)
        return [masks[span] for span in sorted(masks)]

    def _places(self, sequence: Sequence) -> list[int]:
        return [place for place, token in enumerate(sequence.ids) if token == self.facts.mask_id]

    def _candidates(self, mask: Mask, text: str, count: int) -> list[dict[str, Any]]:
        scores = softmax(mask.logits)
        candidates = []
        for index in best(scores, count):
            token = self.tokenizer.backend.decode([index])
            sequence = f"{text[: mask.start]}{token.strip()}{text[mask.end :]}"
            candidates.append({"token": token, "token_id": index, "score": float(scores[index]), "sequence": sequence})
        return candidates
