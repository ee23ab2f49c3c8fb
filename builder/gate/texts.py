"""What the gate says to a tokenizer and a model: texts in several scripts, and what people's texts have in them.

They were written for this purpose. They are few and short, since each is computed by two models at every build.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BY_SCRIPT: dict[str, tuple[str, ...]] = {
    "Latin": (
        "the ferry leaves at seven and comes back before dark",
        "Anna Lindqvist moved from Oslo to New York in March 2019.",
        "Größe, façade, naïve and São Paulo; Łódź, İstanbul, Đà Nẵng.",
    ),
    "Cyrillic": ("Мост через реку построили за два года.",),
    "Greek": ("Το πλοίο φεύγει κάθε πρωί.",),  # noqa: RUF001
    "Arabic": ("وصلت الرسالة في الصباح.",),
    "Hebrew": ("הרכבת יוצאת בשעה שבע.",),
    "Devanagari": ("आज बाज़ार बंद है।",),
    "Bengali": ("নৌকাটি ঘাটে বাঁধা।",),
    "Thai": ("ร้านหนังสือเปิดทุกวัน",),
    "Chinese": ("图书馆星期一不开门。",),
    "Japanese": ("駅の前に古い本屋があります。",),
    "Korean": ("오늘은 비가 와서 배가 없다.",),
    "Georgian": ("წიგნი მაგიდაზეა.",),
    "amino acids": ("M K T A Y I A K Q R Q I S F V K S H F S R Q",),
    "nucleotides": ("ACGT CGTA GTAC TACG ACGTA CGTAC GTACG ACGTAC CGTACG GTACGT TACGTA", "A C G T A C G T"),
    "code": ("for (int i = 0; i < n; ++i) { sum += a[i]; }", "def area(w, h): return w * h  # mm2"),
}
"""A tokenizer is judged by the script it knows best."""

ODD = (
    "a",
    "WHY IS EVERYTHING IN CAPITALS?!",
    "12,345.67 EUR on 2024-02-29 at 07:30 (+49 30 1234567)",
    "tab\there, new\nline, no-break\u00a0space, wide\u3000space",
    "cafe\u0301, e\u0301te\u0301: combining marks; \U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 pictures",
    "don't, rock-'n'-roll, C++/C#, a_b, https://example.org/x?y=1&z=2",
    "\u200b",
    "supercalifragilistic" * 6,
)
"""What tokenizers read differently: case, numbers, white space, marks, an apparently empty text, an endless word."""

PAIRS = (
    ("Where does the ferry stop?", "It stops at the old pier and at the lighthouse."),
    ("What is it?", "Größe: 42 mm; Höhe: 7 mm."),
    ("图书馆开门吗?", "图书馆星期一不开门。"),
    ("short", "a"),
)

LONG = " ".join(
    f"Entry {day}: the keeper of the lighthouse counted {7 * day % 31} ships, wrote the wind's strength into the book "
    f"and went to bed at {day % 12 + 1} o'clock; nobody called."
    for day in range(1, 40)
)
"""Longer than most models take: about 1,100 words."""

QUESTIONS = (
    (
        "Who repaired the clock?",
        "The clock stood still until Hanna Bergqvist repaired it in 2011. It is right since.",
    ),
    ("When does the library close?", "On Mondays the library stays closed. On other days it closes at half past six."),
    ("Wie heißt der Turm?", "Der Turm am Hafen heißt Möwenturm;\nerbaut wurde er 1887."),
    ("图书馆什么时候关门?", "图书馆在城市中心,星期一不开门,其他日子六点半关门。"),
)


CLAIMED = (
    {"candidate_labels": ["travel", "a complaint about money", "sport"]},
    {"candidate_labels": ["a lighthouse", "library"], "multi_label": True},
    {"candidate_labels": ["Reise", "图书馆", "порт", "a"], "hypothesis_template": "The text is about {}, it seems."},
    {"candidate_labels": ["weather"]},
)
"""Labels that a zero-shot classifier chooses from, and what is claimed of a text with them."""


def special_texts(tokenizer: Any) -> Iterator[str]:
    """Each of the checkpoint's own special and added tokens within a text, as users may type them."""
    added = sorted(str(token) for token in tokenizer.added_tokens_decoder.values())
    for token in list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))[:12]:
        yield f"before {token} after{token} it"
