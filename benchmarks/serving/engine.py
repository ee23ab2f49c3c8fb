"""How fast the model of an archive is on its own: the most that a server can pass on to its clients."""

from __future__ import annotations

import time
from typing import Any

from handler.packing import Arrays
from handler.predictor import Predictor


class _Timed:
    """A model that counts its sequences and seconds."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        self.takes_packed = getattr(model, "takes_packed", False)
        self.sequences, self.seconds = 0, 0.0

    def __call__(self, ids: Any, segments: Any, mask: Any) -> Arrays:
        start = time.perf_counter()
        outputs = self.model(ids, segments, mask)
        self.seconds += time.perf_counter() - start
        self.sequences += len(ids) if ids.ndim == 2 else len(mask) - 1
        return outputs


def engine_rate(predictor: Predictor, payloads: list[dict[str, Any]], batch: int = 32) -> float:
    """Sequences per second of the model alone on the same texts, in batches of ``batch``."""
    timed = _Timed(predictor.model)
    measured = Predictor(predictor.facts, predictor.config, predictor.task.tokenizer, timed)
    rows = [{"body": payload} for payload in payloads]
    for _ in range(2):  # the first time round allocates and tunes
        timed.sequences, timed.seconds = 0, 0.0
        for start in range(0, len(rows), batch):
            measured.predict(rows[start : start + batch])
    return timed.sequences / timed.seconds
