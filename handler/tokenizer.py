"""Stage two: texts become sequences of token ids no longer than the model takes; and tokens become text again."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import tokenizers
from tokenizers import Encoding, processors

from handler.config import Truncation
from handler.errors import RequestError
from handler.front import LONG, Fronts
from handler.word_cache import WordCache

BYTE_SPACE = "Ġ"
"""A space, as byte-level tokenizers write it."""
EDGE = 100
"""Characters read for a text's last or first token: more than any word has."""
Input: TypeAlias = "str | tuple[str, str]"
"""A text or a pair of texts."""
Cut: TypeAlias = Literal["longest", "first"]
"""Which text of a pair is cut: the longer one, and windows go over the second; or always the first."""


T_co = TypeVar("T_co", covariant=True)


class ByPlace(Protocol[T_co]):
    """Something for each input: a list, or what is asked only for the inputs that need it."""

    def __getitem__(self, place: int, /) -> T_co:
        """Of the input at this place."""


@dataclass(slots=True)
class Sequence:
    """One row of the model's input. ``segments`` None means all zero; ``encoding``: the tokenizer's, if asked for.

    ``offsets``, likewise: each token's characters [start, end) of its own text. Use these, not the encoding's.
    ``prompt``: so many tokens at the beginning that pooling leaves out. ``unseen``: so many at the end that no token
    attends to. ``adapter``: the one whose weights the row is for, where an archive has several.
    """

    ids: list[int]
    segments: list[int] | None = None
    encoding: Encoding | None = None
    offsets: list[tuple[int, int]] | None = None
    prompt: int = 0
    unseen: int = 0
    adapter: str | None = None


@dataclass(slots=True)
class Tokenized:
    """One input's sequences: one, or several windows. ``dropped``: tokens that truncation cut off; estimated by their
    characters where most of a text was never read."""

    sequences: list[Sequence]
    dropped: int = 0


@dataclass(slots=True)
class Fit:
    """How one input is brought to ``longest`` tokens."""

    policy: Truncation
    stride: int
    longest: int
    cut: Cut = "longest"


class Tokenizer:
    """``tokenizer.json`` with the archive's limits.

    ``max_length``: longest sequence in tokens, special tokens included. ``uses_segments``: whether the model
    distinguishes the two texts of a pair. ``max_tokens``: most tokens of one input's windows together.
    ``cut_side``: the end that truncation cuts off.
    """

    def __init__(
        self, path: Path | str, max_length: int, uses_segments: bool, max_tokens: int = 65_536, cut_side: str = "right"
    ) -> None:
        self.backend = tokenizers.Tokenizer.from_file(str(path))
        self.backend.no_truncation()
        self.backend.no_padding()
        self.max_length = max_length
        self._max_tokens = max_tokens
        self._uses_segments = uses_segments
        self._trims = _stop_trimming(self.backend)
        self._cut_side = cut_side
        self._words = WordCache.of(self.backend)
        self._fronts = Fronts.of(self.backend) if cut_side == "right" else None
        self.knows_words = isinstance(self.backend.model, tokenizers.models.WordPiece)
        """Whether tokens of one word can be told from the tokenizer; otherwise white space has to do."""
        self.word_end: str | None = getattr(self.backend.model, "end_of_word_suffix", None) or None
        """What the last token of a word ends with, where the tokenizer marks ends and not beginnings."""
        names = (getattr(self.backend.model, "unk_token", None), "<unk>", "[UNK]")
        found = (self.backend.token_to_id(name) for name in names if name)
        self.unknown_id = next((index for index in found if index is not None), None)

    @property
    def vocabulary_size(self) -> int:
        """Entries, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def token(self, index: int | None) -> str:
        """A token's text; empty where there is none."""
        return "" if index is None else self.backend.id_to_token(index) or ""

    def decode(self, ids: Many[int]) -> str:
        """Tokens as text, special ones too: what transformers' ``decode`` gives."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no text."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    def edge(self, text: str, *, last: bool) -> int | None:
        """The text's last (or first) token; None where it has none. Of a long text only its end (start) is read."""
        near = text[-EDGE:] if last else text[:EDGE]
        ids = self.backend.encode(near, add_special_tokens=False).ids
        return ids[-1 if last else 0] if ids else None

    def prompt_length(self, prompt: str) -> int:
        """How many tokens a text begins with that begins with ``prompt``, as sentence-transformers counts them.

        The special tokens before it are among them, one behind it is not.
        """
        encoding = self.backend.encode(prompt)
        length = min(len(encoding.ids), self.max_length)
        return length - 1 if length and encoding.special_tokens_mask[-1] else length

    def encode(
        self,
        inputs: Many[Input],
        policies: ByPlace[Truncation],
        strides: ByPlace[int],
        *,
        offsets: bool = False,
        cut: Cut = "longest",
        longest: Many[int | None] | None = None,
    ) -> list[Tokenized | RequestError]:
        """Tokenize a batch; an input longer than ``max_length`` is treated as its policy says.

        Windows (policy "stride") share ``stride`` tokens; of a pair only one text is spread over them, see ``Cut``.
        ``longest``: limits of single inputs below ``max_length``.
        """
        most = self.max_length
        limits = [most if limit is None else min(limit, most) for limit in longest] if longest else [most] * len(inputs)
        rows = [None if offsets or is_long(text) else self._quick(text) for text in inputs]
        results: list[Any] = [
            Tokenized([row]) if row is not None and 0 < len(row.ids) <= limit else None
            for row, limit in zip(rows, limits, strict=True)
        ]
        left = [place for place, result in enumerate(results) if result is None]
        if left:
            fits = [Fit(policies[place], strides[place], limits[place], cut) for place in left]
            slow = self._fully([inputs[place] for place in left], [rows[place] for place in left], fits, offsets)
            for place, result in zip(left, slow, strict=True):
                results[place] = result
        return results

    def _fully(
        self, inputs: list[Input], rows: list[Sequence | None], fits: list[Fit], offsets: bool
    ) -> list[Tokenized | RequestError]:
        """What the word cache alone has not answered. ``rows``: what it made of each input; that does not fit then."""
        far = [place for place, text in enumerate(inputs) if is_long(text)]
        fronts = {place: front for place in far if (front := self._front(inputs[place], fits[place])) is not None}
        whole = list(rows)
        for place in far:
            if place not in fronts and not offsets:
                whole[place] = self._quick(inputs[place])
        rest = [place for place, row in enumerate(whole) if row is None and place not in fronts]
        for place, made in zip(rest, self._whole([inputs[place] for place in rest], offsets), strict=True):
            whole[place] = made
        results: list[Tokenized | RequestError] = []
        for place, (text, fit, row) in enumerate(zip(inputs, fits, whole, strict=True)):
            if place in fronts or row is None:
                results.append(self._beginning(*fronts[place], fit, offsets))
            elif 0 < len(row.ids) <= fit.longest:
                results.append(Tokenized([row]))
            else:
                results.append(self._fitted(row, text, fit, offsets))
        return results

    def _whole(self, inputs: list[Input], offsets: bool) -> list[Sequence]:
        """Each input's tokens, however many."""
        if not inputs:
            return []
        batch = self.backend.encode_batch if offsets else self.backend.encode_batch_fast
        return [self._sequence(*pair, offsets) for pair in zip(batch(inputs), inputs, strict=True)]

    def _quick(self, text: Input) -> Sequence | None:
        """By the word cache where that will do."""
        if self._words is None:
            return None
        if isinstance(text, str):
            ids = self._words.single(text) if text.isascii() else self._words.mixed(text)
            return None if ids is None else Sequence(ids)
        pair = self._words.pair(*text)
        return None if pair is None else Sequence(pair[0], pair[1] if self._uses_segments else None)

    def _front(self, text: Input, fit: Fit) -> tuple[Input, int] | None:
        """What of a text far beyond the limit decides what truncation leaves of it, and about how many tokens the whole
        has; None where it is to be tokenized whole."""
        if self._fronts is None or fit.policy != "truncate":
            return None
        if isinstance(text, str):
            front = self._fronts.front(text, fit.longest) if len(text) > LONG else None
            return None if front is None else (front.text, front.tokens)
        place = 0 if fit.cut == "first" or len(text[0]) > len(text[1]) else 1
        other = text[1 - place]
        if len(text[place]) <= LONG or len(other) > LONG:
            return None
        # The longer of two texts is known before all of it is read: it has more tokens than the other.
        used = len(self.backend.encode(other, add_special_tokens=False))
        front = self._fronts.front(text[place], max(fit.longest, used) + 1)
        if front is None:
            return None
        return ((front.text, other) if place == 0 else (other, front.text)), front.tokens + used

    def _beginning(self, text: Input, tokens: int, fit: Fit, offsets: bool) -> Tokenized | RequestError:
        try:
            (window,) = self._windows(text, tokens, fit)
        except RequestError as error:
            return error
        return Tokenized([self._sequence(window, text, offsets)], max(1, tokens - len(window)))

    def _fitted(self, row: Sequence, text: Input, fit: Fit, offsets: bool) -> Tokenized | RequestError:
        length = len(row.ids)
        if length == 0:  # a tokenizer that adds no special tokens, and a text that its normalizer leaves nothing of
            return RequestError("empty", "the text has no tokens")
        if fit.policy == "error":
            return RequestError("too_long", f"{length} tokens, the model takes {fit.longest}")
        try:
            windows = self._windows(text, length, fit)
        except RequestError as error:
            return error
        dropped = 0 if fit.policy == "stride" else length - len(windows[0])
        return Tokenized([self._sequence(window, text, offsets) for window in windows], dropped)

    def _windows(self, text: Input, length: int, fit: Fit) -> list[Encoding]:
        """Cut by the tokenizer itself, so that special tokens and offsets are exactly those of a short text."""
        single = isinstance(text, str)
        if fit.policy == "truncate" and (single or fit.cut == "longest"):
            return [self._truncated(text, 0, fit.longest, "longest_first", self._cut_side)]
        strategy = "only_first" if single or fit.cut == "first" else "only_second"
        used, room = self._room_beside(text, fit)
        if fit.policy == "truncate":
            return [self._truncated(text, 0, fit.longest, strategy, self._cut_side)]
        stride = self._stride_that_fits(length - used, room, fit)
        first = self._truncated(text, stride, fit.longest, strategy)
        return [first, *first.overflowing]

    def _room_beside(self, text: Input, fit: Fit) -> tuple[int, int]:
        """Tokens of the text that is not cut, and the room that it leaves. Raises RequestError for too little."""
        single = isinstance(text, str)
        name = "second" if fit.cut == "first" else "first"
        used = 0 if single else len(self.backend.encode(text[name == "second"], add_special_tokens=False))
        room = fit.longest - self.backend.num_special_tokens_to_add(not single) - used
        if room < (2 if fit.policy == "stride" else 1):
            raise RequestError("too_long", f"the {name} text has {used} tokens of the {fit.longest} the model takes")
        return used, room

    def _stride_that_fits(self, length: int, room: int, fit: Fit) -> int:
        """At least half of a window's room must be new tokens, else windows would multiply.

        ``length``: of the text that is cut, with special tokens. Raises RequestError where the windows would be too
        many.
        """
        stride = min(fit.stride, room // 2)
        windows = -(-length // (room - stride))
        if windows * fit.longest > self._max_tokens:
            raise RequestError(
                "too_large", f"about {windows * fit.longest} tokens in windows, at most {self._max_tokens} allowed"
            )
        return stride

    def _truncated(self, text: Input, stride: int, longest: int, strategy: str, side: str = "right") -> Encoding:
        self.backend.enable_truncation(longest, stride=stride, strategy=strategy, direction=side)
        try:
            return self.backend.encode(text) if isinstance(text, str) else self.backend.encode(*text)
        finally:
            self.backend.no_truncation()

    def _sequence(self, encoding: Encoding, text: Input, offsets: bool) -> Sequence:
        segments = encoding.type_ids if not isinstance(text, str) and self._uses_segments else None
        if not offsets:
            return Sequence(encoding.ids, segments)
        return Sequence(encoding.ids, segments, encoding, self._offsets(encoding, text))

    def _offsets(self, encoding: Encoding, text: Input) -> list[tuple[int, int]]:
        if not self._trims:
            return encoding.offsets
        texts = (text,) if isinstance(text, str) else text
        parts = zip(encoding.sequence_ids, encoding.tokens, encoding.offsets, strict=True)
        return [span if part is None else _without_spaces(texts[part], token, *span) for part, token, span in parts]


def is_long(text: Input) -> bool:
    """Whether one is, or one of a pair, of which the beginning may do (handler.front)."""
    return len(text) > LONG if isinstance(text, str) else len(text[0]) > LONG or len(text[1]) > LONG


def _stop_trimming(backend: tokenizers.Tokenizer) -> bool:
    """Have byte-level offsets keep their leading spaces; whether they would have been cut off.

    The library cuts one character off a token that begins with a space, whether or not that space stands in the text:
    where it was only put in front of the text, and the post-processor has not been told so, a letter is lost.
    """
    if "ByteLevel" not in str(backend.pre_tokenizer):
        return False
    processor = backend.post_processor
    several: Any = processor  # its stub does not say that it can be iterated over
    steps = list(several) if isinstance(processor, processors.Sequence) else [processor]
    trimming = [step for step in steps if getattr(step, "trim_offsets", False)]
    for step in trimming:
        step.trim_offsets = False
    if trimming:
        backend.post_processor = processor
    return bool(trimming)


def _without_spaces(text: str, token: str, start: int, end: int) -> tuple[int, int]:
    """What trimming leaves of a token: its characters without the spaces around them.

    A token of nothing but a space that was put in front of the text has no character of it.
    """
    if not token.strip(BYTE_SPACE) and text[start:end].strip(" "):
        return start, start
    while start < end and text[start] == " ":
        start += 1
    while start < end and text[end - 1] == " ":
        end -= 1
    return start, end
