"""From a question and a context to windows a model can read, and from its logits back to an answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from samples.batches import Features

MAX_LENGTH = 384
STRIDE = 128
MAX_ANSWER = 30


@dataclass(frozen=True)
class Window:
    """One model input. ``offsets`` holds (first, last + 1) characters of the context per token, None outside it."""

    features: Features
    offsets: tuple[tuple[int, int] | None, ...]

    def target(self, start: int, length: int) -> tuple[int, int]:
        """First and last token of an answer, or (0, 0), the [CLS] token, when it is not wholly inside."""
        end = start + length
        first = next((i for i, o in enumerate(self.offsets) if o and o[0] <= start < o[1]), 0)
        last = next((i for i, o in enumerate(self.offsets) if o and o[0] < end <= o[1]), 0)
        return (first, last) if length and first and last else (0, 0)


def make_windows(tokenizer: PreTrainedTokenizerFast, question: str, context: str) -> list[Window]:
    """Windows of at most MAX_LENGTH tokens that overlap by STRIDE, the question in front of each."""
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    windows = []
    for row, spans in enumerate(encoded["offset_mapping"]):
        inside = encoded.sequence_ids(row)
        features = {key: encoded[key][row] for key in ("input_ids", "token_type_ids", "attention_mask")}
        windows.append(Window(features, tuple(tuple(s) if inside[i] == 1 else None for i, s in enumerate(spans))))
    return windows


def best_span(start: Tensor, end: Tensor, window: Window) -> tuple[float, int, int]:
    """The likeliest answer in one window: its margin over "no answer" and its characters [first, last).

    ``start`` and ``end`` are logits ``[S]`` with S at least the window's length. Start and end are chosen together:
    inside the context, in order, at most MAX_ANSWER tokens apart.
    """
    length = len(window.offsets)
    inside = torch.tensor([offset is not None for offset in window.offsets])
    scores = start[:length, None] + end[None, :length]
    allowed = inside[:, None] & inside[None, :]
    allowed &= torch.ones_like(allowed).triu() & torch.ones_like(allowed).tril(MAX_ANSWER - 1)
    best = int(scores.masked_fill(~allowed, -torch.inf).argmax())
    first, last = divmod(best, length)
    spans = [span for span in window.offsets[first : last + 1] if span]
    return float(scores[first, last] - scores[0, 0]), spans[0][0], spans[-1][1]
