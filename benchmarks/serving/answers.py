"""Whether a server answers as the checkpoint does; one that does not gets no load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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


def ask(served: Served, text: str) -> Answer:
    """One request's answer. Raises Refused where there is none."""
    target = served.target
    headers = {**target.headers, "Content-Type": "application/json"}
    body = json.dumps(served.body({"text": text}))
    try:
        reply = requests.post(target.url + target.path, data=body, headers=headers, timeout=_PATIENCE)
    except requests.RequestException as error:
        raise Refused(f"no answer ({type(error).__name__})") from error
    if reply.status_code != 200:
        raise Refused(f"status {reply.status_code}: {reply.text[:200]}")
    try:
        return served.answer(reply.json())
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise Refused(f"an answer without a label: {reply.text[:200]}") from error


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
