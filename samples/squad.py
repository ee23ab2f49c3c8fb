"""The measures of SQuAD 2.0: exact match and F1 over normalised words.

Rajpurkar et al., "Know What You Don't Know: Unanswerable Questions for SQuAD", 2018. Written from the paper's
definition; an unanswerable question counts as right only when the prediction is empty.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and surplus white space, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(truth: str, predicted: str) -> float:
    """1 when both are the same after normalisation, else 0."""
    return float(normalise(truth) == normalise(predicted))


def f1(truth: str, predicted: str) -> float:
    """Harmonic mean of the precision and recall of words; with an empty side, 1 if both are empty, else 0."""
    wanted, given = normalise(truth).split(), normalise(predicted).split()
    if not wanted or not given:
        return float(wanted == given)
    common = sum((Counter(wanted) & Counter(given)).values())
    return 2 * common / (len(wanted) + len(given))


def score(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Mean EM and F1 in percent over (truth, prediction) pairs; "" stands for no answer."""
    rows = [(exact(*pair), f1(*pair)) for pair in pairs]
    return {"EM": 100 * sum(r[0] for r in rows) / len(rows), "F1": 100 * sum(r[1] for r in rows) / len(rows)}
