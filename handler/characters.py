"""What a text's characters say of where it may be cut: white space, scripts without spaces, marks on a letter.

From the Unicode character database in Python's ``unicodedata``, so that a worker needs no further package.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final
from unicodedata import category, combining

_ZERO_WIDTH_SPACE: Final = "\u200b"
_JOINER: Final = "\u200d"
_VIRAMA: Final = 9
"""The combining class of the sign that joins two consonants of India's scripts."""
# First and last code point of scripts that are written without spaces between words (line breaking classes SA, ID and
# CJ of Unicode's annex 14), in order.
_UNSPACED: Final = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x312F),  # CJK radicals and punctuation, Hiragana, Katakana, Bopomofo
    (0x3190, 0x4DBF),  # Bopomofo and Katakana extensions, enclosed and compatibility characters, Han A
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar B
    (0xAA60, 0xAADF),  # Myanmar A, Tai Viet
    (0xF900, 0xFAFF),  # Han compatibility
    (0xFE30, 0xFE4F),  # CJK vertical forms
    (0xFF01, 0xFF0F),  # full-width punctuation
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF9F),  # half-width Katakana
    (0x1B000, 0x1B16F),  # Kana supplements
    (0x1F200, 0x1F2FF),  # enclosed ideographs
    (0x20000, 0x3FFFF),  # Han B and later
)
_FIRST: Final = tuple(first for first, _ in _UNSPACED)
_EXTENDING: Final = frozenset("\u200c\u200d\uff9e\uff9f\u0e33\u0eb3")
"""Characters that belong to the one before them though their category is no mark's."""


def is_space(character: str) -> bool:
    """Every kind of white space (no-break, ideographic, tabs, ends of line) and the zero width space."""
    return character.isspace() or character == _ZERO_WIDTH_SPACE


def is_unspaced(character: str) -> bool:
    """Whether it belongs to a script that puts no spaces between words (Chinese, Japanese, Thai ...)."""
    point = ord(character)
    place = bisect_right(_FIRST, point) - 1
    return place >= 0 and point <= _UNSPACED[place][1]


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends; empty at its start where there is nothing else."""
    span = text[start:end]
    if not span.strip():
        return start, start
    return start + len(span) - len(span.lstrip()), end - len(span) + len(span.rstrip())


def whole(text: str, start: int, end: int) -> tuple[int, int]:
    """The span [start, end), widened where it would cut a letter from its marks or an emoji in two.

    Grapheme clusters as of Unicode's annex 29, without its rule for prepended marks; where its tables make exceptions
    (some vowel signs of Myanmar's) the span is the wider one.
    """
    if start >= end:
        return start, end
    while _within(text, start):
        start -= 1
    while _within(text, end):
        end += 1
    return start, end


def _within(text: str, place: int) -> bool:
    """Whether a cut before ``place`` would part what belongs together."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if before < "\u0300" and after < "\u0300":
        return before == "\r" and after == "\n"
    if before in "\r\n" or category(before) == "Cc":
        return False
    if _extends(after):
        return True
    if before == _JOINER:
        return category(after) == "So"
    if "\u0900" <= after <= "\u0d7f" and category(after) == "Lo":
        return _follows_virama(text, place)
    if _is_regional(after) and _is_regional(before):
        return _count_regional(text, place) % 2 == 1
    return _joins_hangul(ord(before), ord(after))


def _follows_virama(text: str, place: int) -> bool:
    """Whether the marks before ``place`` say that the next consonant belongs to the letter they stand on."""
    while place > 0 and _extends(text[place - 1]):
        place -= 1
        if combining(text[place]) == _VIRAMA:
            return True
    return False


def _extends(character: str) -> bool:
    point = ord(character)
    skin_or_tag = 0x1F3FB <= point <= 0x1F3FF or 0xE0020 <= point <= 0xE007F
    return skin_or_tag or character in _EXTENDING or category(character) in ("Mn", "Me", "Mc")


def _is_regional(character: str) -> bool:
    """Two of them make a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _count_regional(text: str, place: int) -> int:
    count = 0
    while count < place and _is_regional(text[place - 1 - count]):
        count += 1
    return count


def _joins_hangul(before: int, after: int) -> bool:
    """Letters that make one syllable: leading before vowel, vowel before trailing consonant."""
    vowel = 0x1160 <= after <= 0x11A7 or 0xD7B0 <= after <= 0xD7C6
    trailing = 0x11A8 <= after <= 0x11FF or 0xD7CB <= after <= 0xD7FB
    syllable = 0xAC00 <= before <= 0xD7A3
    if 0x1100 <= before <= 0x115F or 0xA960 <= before <= 0xA97C:
        return vowel or 0x1100 <= after <= 0x115F or 0xA960 <= after <= 0xA97C or 0xAC00 <= after <= 0xD7A3
    if (syllable and (before - 0xAC00) % 28 == 0) or 0x1160 <= before <= 0x11A7 or 0xD7B0 <= before <= 0xD7C6:
        return vowel or trailing
    return (syllable or 0x11A8 <= before <= 0x11FF or 0xD7CB <= before <= 0xD7FB) and trailing
