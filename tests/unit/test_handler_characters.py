"""Where a text may be cut, beside the regex library's grapheme clusters."""

from __future__ import annotations

import random

import pytest
import regex

from handler.characters import is_space, is_unspaced, trimmed, whole

POOL = [
    *"abé1 \n\r\t.☎❤", "\u0301", "\u0300", "\u20e3", "\u200d", "\ufe0f", "👩", "👧", "\U0001f3fd", "🇩", "🇪", "🇫",
    "\u1100", "\u1161", "\u11a8", "가", "각", "中", "か", "\u3099", "ก", "\u0e34", "\u0e33", "न", "\u093f", "\u094d",
    "क",    "م", "\u064b", "ཀ", "\u0f72", "\u200c",
]  # fmt: skip


def test_no_span_cuts_a_grapheme_and_none_is_wider_than_it_must_be() -> None:
    generator = random.Random(4)
    wider = total = 0
    for _ in range(4000):
        text = "".join(generator.choices(POOL, k=generator.randint(2, 7)))
        borders = {match.start() for match in regex.finditer(r"\X", text)} | {len(text)}
        start = generator.randrange(len(text))
        end = generator.randrange(start + 1, len(text) + 1)
        first, last = whole(text, start, end)
        assert first <= start
        assert last >= end
        assert {first, last} <= borders, ascii(text)
        nearest = max(b for b in borders if b <= start), min(b for b in borders if b >= end)
        wider += (first, last) != nearest
        total += 1
    assert wider < 0.05 * total  # joiners behind what is no emoji


def test_an_empty_span_stays_empty() -> None:
    assert whole("e\u0301", 1, 1) == (1, 1)


@pytest.mark.parametrize("space", [" ", "\t", "\n", "\r", "\u00a0", "\u3000", "\u2009", "\u202f", "\u2028", "\u200b"])
def test_every_kind_of_white_space(space: str) -> None:
    assert is_space(space)
    assert not is_space("a")


@pytest.mark.parametrize(("text", "unspaced"), [("中かカกြབក", True), ("aéжأ가9👩.", False)])
def test_scripts_without_spaces(text: str, unspaced: bool) -> None:
    assert [is_unspaced(character) for character in text] == [unspaced] * len(text)


def test_trimmed() -> None:
    assert trimmed(" a b\u00a0 ", 0, 6) == (1, 4)
    assert trimmed("a  b", 1, 3) == (1, 1)
