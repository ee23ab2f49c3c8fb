"""The beginning of a text that decides its first tokens, so that a book costs what its first page costs.

A tokenizer that splits texts into words (its pre-tokenizer) and treats each on its own gives the words of a beginning
the tokens that they have in the whole, but for the last words of it, which may go on behind the cut. Tokens count as
settled where two whole words and a margin of characters follow them; where too few are settled, more of the text is
read, and in the end all of it. Tokenizers of other kinds, and regular expressions that look far ahead, have no front:
their texts are tokenized whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import tokenizers

LONG = 20_000
"""Characters up to which a text is tokenized whole, in some milliseconds, so that what was cut off is counted."""
PER_TOKEN = 8
"""Characters read at first for each token that is wanted; the languages of the usual vocabularies have 1 to 6."""
MARGIN = 256
"""Characters before the cut whose words are not settled, at least: longer than an added token."""
REACH = 4_096
"""Characters within which there must be a place to cut."""
_FORWARD_NORMALIZERS = {
    "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip", "Prepend", "Replace",
    "Precompiled", "ByteLevel", "Sequence",
}  # fmt: skip
_FORWARD_SPLITS = {
    "BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace", "Split", "Digits", "Punctuation",
    "UnicodeScripts", "CharDelimiterSplit", "Sequence",
}  # fmt: skip
"""Those whose result up to a word depends on what follows by no more than that word and the next."""
_PLACE = re.compile(r"(?<=\S)\s|(?<=[\u3400-\u4dbf\u4e00-\u9fff])[\u3400-\u4dbf\u4e00-\u9fff]")
"""Before white space behind a word, or between two ideographs: no normalizer joins anything across either."""
_FAR_LOOKING = re.compile(r"\(\?[=!<]|\$|\\[zZGK]|\.[*+]")
_NEXT_ONLY = re.compile(r"\(\?[=!]\\[sS]\)")


@dataclass(frozen=True, slots=True)
class Front:
    """A beginning of a text, and about how many tokens the whole has."""

    text: str
    tokens: int


class Fronts:
    """Finds fronts for one tokenizer; make it with :meth:`of`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder().values()
        self._margin = max([MARGIN, *(2 * len(token.content) for token in added)])

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> Fronts | None:
        """None where a beginning does not decide its tokens."""
        normalizer, splitter = _described(backend.normalizer), _described(backend.pre_tokenizer)
        if splitter is None or not _forward(splitter, _FORWARD_SPLITS):
            return None
        return cls(backend) if normalizer is None or _forward(normalizer, _FORWARD_NORMALIZERS) else None

    def front(self, text: str, tokens: int) -> Front | None:
        """The front whose first ``tokens`` tokens are the whole text's; None where reading it would save little."""
        size = self._margin + PER_TOKEN * tokens
        while 2 * size < len(text):
            place = _PLACE.search(text, size, size + REACH)
            if place is None:
                return None
            end = place.start()
            encoding = self._backend.encode(text[:end], add_special_tokens=False)
            if self._settled(encoding, end) >= tokens:
                return Front(text[:end], len(encoding) * len(text) // end)
            size *= 4
        return None

    def _settled(self, encoding: tokenizers.Encoding, end: int) -> int:
        """How many of the tokens of a text's first ``end`` characters are those of the text."""
        words = encoding.word_ids
        reaching = (place for place, (_, stop) in enumerate(encoding.offsets) if stop > end - self._margin)
        first = next(reaching, len(words) - 1)
        unsettled = words[first] if words else None
        if unsettled is None:
            return 0
        settled = unsettled - 1  # the last word before the margin may have been waiting for the next
        return next((place for place, word in enumerate(words) if word is None or word >= settled), 0)


def _described(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json says it."""
    return None if part is None else json.loads(part.__getstate__())


def _forward(part: dict[str, Any], known: set[str]) -> bool:
    """Whether a part, and each of those it is made of, works its way forward, a word at a time."""
    if part.get("type") not in known:
        return False
    for inner in (*part.get("normalizers", ()), *part.get("pretokenizers", ())):
        if not _forward(inner, known):
            return False
    if not part.get("use_regex", True) or not part.get("split", True):  # a text is one word to it
        return False
    pattern = part.get("pattern")
    expression = pattern.get("Regex", "") if isinstance(pattern, dict) else ""
    return not _FAR_LOOKING.search(_NEXT_ONLY.sub("", expression))
