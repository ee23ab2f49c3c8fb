"""Whether a server answers as the checkpoint does, or as the first server of its archive; else it gets no load."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import torch

from benchmarks.serving.load import Refused
from benchmarks.serving.servers import Answer, Served

ASKED = 20
"""Requests, spread over the texts."""
TOLERANCE = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.05, "int8": 0.15}
"""How far a score may be from transformers' own in fp32. Of 512 texts the sample's worst is 0.037 off in plain bf16 and
0.107 in int8."""
_AT_ONCE = 8
"""So that a server forms batches of several lengths, as it will under load."""
_PATIENCE = 120.0


@dataclass(frozen=True)
class Reference:
    """Each label's probability by transformers itself, for some of the texts."""

    texts: Sequence[str]
    scores: Sequence[dict[str, float]]

    @classmethod
    def of(cls, model: Path, texts: Sequence[str], longest: int) -> Reference:
        """Ask a checkpoint, in fp32 and text by text; ``longest`` in tokens.

        Raises ValueError where it is none that gives each text one of several labels.
        """
        import transformers

        chosen = list(texts)[:: max(1, len(texts) // ASKED)][:ASKED]
        transformers.utils.logging.disable_progress_bar()
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
            model, dtype=torch.float32, trust_remote_code=False
        ).eval()
        config = classifier.config
        if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
            raise ValueError(f"{model.name} does not give each text one of several labels")
        scores = []
        for text in chosen:
            with torch.inference_mode():
                inputs = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
                probabilities = classifier(**inputs).logits[0].softmax(-1).tolist()
            scores.append({config.id2label[index]: value for index, value in enumerate(probabilities)})
        return cls(chosen, scores)

    def check(self, served: Served, tolerance: float) -> None:
        """Ask a running server the same. Raises Refused where an answer differs."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(pool.map(lambda text: ask(served, text), self.texts))
        found = [difference(*pair, tolerance) for pair in zip(answers, self.scores, strict=True)]
        wrong = [reason for reason in found if reason]
        if wrong:
            raise Refused(f"{len(wrong)} of {len(found)} answers differ from transformers': {wrong[0]}")


@dataclass
class Agreement:
    """Whether servers of the same archive give the same answers, one request at a time: what shares a pass moves the
    last digits. A score may be 1e-3 off, one of another device 0.01: it rounds alike, but sums in another order."""

    payloads: Sequence[dict[str, Any]]
    device_differs: bool = False
    answers: dict[str, list[Any]] = field(default_factory=dict)
    """The first server's, by archive."""

    def check(self, served: Served, archive: str) -> None:
        """Ask a running server. Raises Refused where its answers are not those of the archive's first one."""
        own = [reply(served, payload) for payload in self.payloads]
        expected = self.answers.setdefault(archive, own)
        allowed = 0.01 if self.device_differs else 1e-3
        wrong = sum(apart(*pair) > allowed for pair in zip(own, expected, strict=True))
        if wrong:
            raise Refused(f"{wrong} of {len(own)} answers differ from those of the archive's first server")

    @property
    def different(self) -> int:
        """How many requests the archives do not all answer alike, scores apart."""
        columns = zip(*self.answers.values(), strict=True)
        return sum(any(apart(column[0], other) == math.inf for other in column) for column in columns)


def apart(one: Any, other: Any) -> float:
    """The largest difference of two numbers at the same place of two answers; infinite where anything else differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((apart(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if one == other else math.inf


def ask(served: Served, text: str) -> Answer:
    """One text's label. Raises Refused where there is none."""
    said = reply(served, {"text": text})
    try:
        return served.answer(said)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise Refused(f"an answer without a label: {json.dumps(said)[:200]}") from error


def reply(served: Served, payload: dict[str, Any]) -> Any:
    """One request's answer, decoded. Raises Refused where there is none."""
    target = served.target
    headers = {**target.headers, "Content-Type": "application/json"}
    body = json.dumps(served.body(payload))
    try:
        found = requests.post(target.url + target.path, data=body, headers=headers, timeout=_PATIENCE)
    except requests.RequestException as error:
        raise Refused(f"no answer ({type(error).__name__})") from error
    if found.status_code != 200:
        raise Refused(f"status {found.status_code}: {found.text[:200]}")
    try:
        return found.json()
    except ValueError as error:
        raise Refused(f"no JSON: {found.text[:200]}") from error


def difference(answer: Answer, scores: dict[str, float], tolerance: float) -> str | None:
    """How an answer differs from the labels' probabilities, None where it does not.

    Another label than the most probable one is right where the two are as good as equal: then rounding decides.
    """
    best = max(scores, key=lambda label: scores[label])
    if scores[best] - scores.get(answer.label, 0.0) > tolerance:
        return f"{answer.label} instead of {best}"
    expected = scores.get(answer.label, 0.0)
    if answer.score is not None and abs(answer.score - expected) > tolerance:
        return f"{answer.label} with a score of {answer.score:.4f} instead of {expected:.4f}"
    return None
