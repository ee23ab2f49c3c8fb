"""A shortcut for plain texts with BERT's WordPiece tokenizers.

Such a tokenizer splits a text at white space (and then further) and treats each part on its own, so the tokens of
what stands between two spaces can be remembered. Splitting and a dictionary then take a tenth of the time of the
full tokenizer, which is most of what a handler spends on a short request.
"""

from __future__ import annotations

import re
import string
from itertools import chain

import tokenizers
from tokenizers import normalizers, pre_tokenizers

CAPACITY = 40_000
"""Words remembered; some 12 MB when full."""
LONGEST_WORD = 40
"""Characters; longer ones are rarely words, and seldom come again."""
NEW_WORDS = 8
"""Words of one text that are looked up on their own: at 8 us each a text of many is quicker left to the tokenizer."""
_NUMBER = re.compile(r"[0-9]{5}")
"""In order numbers and the like, which seldom come again and are not remembered."""
_PLAIN = re.compile(r"[\t\n\r -~]*")
# Each of at most NEW_WORDS words, which a fresh cache takes.
_PROBES = (
    "a", "The quick brown fox, jumps over: (lazy) dogs!", "unbelievably o'clock x-ray 3.14 C++", "a_b @home #1 50% off",
    " leading\tand\r\ntrailing ", "MiXeD CaSe ABC", string.punctuation, "supercalifragilisticexpialidocious" * 2,
)  # fmt: skip
_MIXED = ("Caf\u00e9 na\u00efve \u2013 5 \u20ac", "\u6771\u4eac ok \U0001f44d", "\u0130\u03a3 e\u0301a [x] \u00df")


class _Words(dict[str, list[int]]):
    """Word, with the punctuation that touches it -> token ids, filled from the tokenizer itself.

    Two generations: when the young one has grown to half the capacity it becomes the old one, whose words move back
    as they come again. Those that do not are forgotten with it, while a word in use costs nothing to keep.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._backend = backend
        self._old: dict[str, list[int]] = {}
        self.allowed = NEW_WORDS
        """Words that may yet be looked up; KeyError is raised at one more."""

    def __missing__(self, word: str) -> list[int]:
        ids = self._old.get(word)
        if ids is None:
            if self.allowed == 0:
                raise KeyError(word)
            self.allowed -= 1
            ids = self._backend.encode(word, add_special_tokens=False).ids
        if len(word) <= LONGEST_WORD and not _NUMBER.search(word):
            if len(self) >= CAPACITY // 2:
                self._old = dict(self)
                self.clear()
            self[word] = ids
        return ids


class WordCache:
    """Token ids of plain texts, equal to the tokenizer's; None for a text it is not made for.

    Use :meth:`of`: it refuses tokenizers of another kind and those that disagree on any of the probes.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._words = _Words(backend)
        self._lowercase = bool(getattr(backend.normalizer, "lowercase", False))
        tokens = backend.get_added_tokens_decoder().values()
        added = {token.content for token in tokens}
        # One that is sought in the normalized text may be found where its characters do not stand in the text.
        self._mixes = not any(token.normalized for token in tokens)
        alternatives = "|".join(re.escape(content) for content in sorted(added))
        self._added = re.compile(alternatives, re.IGNORECASE) if added else None
        # Most texts hold none of the characters that these begin with, which takes a tenth of the time to see.
        self._openers = {case for content in added for case in (content[:1].lower(), content[:1].upper())}
        # Where the special tokens stand is read off one text whose own tokens are known.
        marker = self._words["a"]
        self._single = _around(backend.encode("a"), [marker])
        self._pair = _around(backend.encode("a", "a"), [marker, marker])

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> WordCache | None:
        """A cache for the tokenizer, or None where the shortcut would not be exact."""
        bert = isinstance(backend.normalizer, normalizers.BertNormalizer)
        if not (bert and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)):
            return None
        try:
            cache = cls(backend)
        except ValueError:
            return None
        agrees = all(cache.single(probe) == backend.encode(probe).ids for probe in _PROBES)
        cache._mixes = cache._mixes and all(cache.mixed(probe) == backend.encode(probe).ids for probe in _MIXED)
        pair = backend.encode(_PROBES[1], _PROBES[2])
        return cache if agrees and cache.pair(_PROBES[1], _PROBES[2]) == (pair.ids, pair.type_ids) else None

    def single(self, text: str) -> list[int] | None:
        """A text's ids, special tokens included."""
        content = self._parts(text)
        return None if content is None else self._alone(content)

    def mixed(self, text: str) -> list[int] | None:
        """As :meth:`single`, of a text with other characters than ASCII's, such as accents and emoji, that are all
        printable: then nothing but a space parts its words, and no character joins two of them or vanishes."""
        if not self._mixes or text.isascii() or not text.isprintable() or self._has_added(text):
            return None
        # Letters beyond ASCII are not all made small in Python as the tokenizer makes them.
        words = text.split()
        content = self._looked_up(
            [word.lower() if word.isascii() else word for word in words] if self._lowercase else words
        )
        return None if content is None else self._alone(content)

    def _alone(self, parts: list[list[int]]) -> list[int]:
        (before, _), (after, _) = self._single
        return [*before, *chain.from_iterable(parts), *after]

    def pair(self, first: str, second: str) -> tuple[list[int], list[int]] | None:
        """A pair's ids and segments, special tokens included."""
        a, b = self._ids(first), self._ids(second)
        if a is None or b is None:
            return None
        (before, start), (between, middle), (after, end) = self._pair
        ids = [*before, *a, *between, *b, *after]
        return ids, [*start, *[0] * len(a), *middle, *[1] * len(b), *end]

    def _ids(self, text: str) -> list[int] | None:
        parts = self._parts(text)
        return None if parts is None else list(chain.from_iterable(parts))

    def _parts(self, text: str) -> list[list[int]] | None:
        """The ids of each word of an ASCII text."""
        if not (text.isascii() and (text.isprintable() or _PLAIN.fullmatch(text))) or self._has_added(text):
            return None
        return self._looked_up((text.lower() if self._lowercase else text).split())

    def _looked_up(self, words: list[str]) -> list[list[int]] | None:
        self._words.allowed = NEW_WORDS
        try:
            return list(map(self._words.__getitem__, words))
        except KeyError:
            return None

    def _has_added(self, text: str) -> bool:
        if self._added is None:
            return False
        for opener in self._openers:
            if opener in text:
                return self._added.search(text) is not None
        return False


def _around(encoding: tokenizers.Encoding, parts: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """The special tokens' ids and segments before, between and after the parts. Raises ValueError if they differ."""
    pieces = []
    position = 0
    special = encoding.special_tokens_mask
    for part in parts:
        start = special.index(0, position)
        pieces.append((encoding.ids[position:start], encoding.type_ids[position:start]))
        position = start + len(part)
        if encoding.ids[start:position] != part:
            raise ValueError("the tokens of a word depend on its surroundings")
    pieces.append((encoding.ids[position:], encoding.type_ids[position:]))
    return pieces
