"""A known request behind the health of a model: its answer must come, and must not change."""

from __future__ import annotations

import time
from typing import Any

from handler.errors import RequestError
from handler.spellings import Task

TEXT = "The town built a lighthouse."


def canary_request(task: Task, mask: str) -> dict[str, Any]:
    """A small request that every archive of the task can answer."""
    if task == "question_answering":
        return {"question": "Who built the lighthouse?", "context": TEXT}
    if task == "rerank":
        return {"query": "Who built the lighthouse?", "texts": [TEXT]}
    if task == "fill_mask":
        return {"text": f"{mask} {TEXT}"}
    if task == "zero_shot_classification":
        return {"text": TEXT, "candidate_labels": ["a building"]}
    return {"text": TEXT}


class Canary:
    """Asks ``predict`` (a payload to an answer) the task's canary request and compares with its first answer."""

    def __init__(self, predict: Any, request: dict[str, Any]) -> None:
        self._predict = predict
        self.request = request
        self._expected: Any = None

    def check(self) -> dict[str, Any]:
        """``healthy``, the milliseconds it took, and where it is not healthy why."""
        start = time.perf_counter()
        try:
            answer = self._predict(self.request)
        except Exception as error:
            reason = f"{error.type}: {error}" if isinstance(error, RequestError) else type(error).__name__
            return {"healthy": False, "reason": reason, "milliseconds": _since(start)}
        if self._expected is None:
            self._expected = answer
        same = close(answer, self._expected)
        result: dict[str, Any] = {"healthy": same, "milliseconds": _since(start)}
        if not same:
            result["reason"] = "the answer to a known request has changed"
        return result


def close(a: Any, b: Any, tolerance: float = 1e-2) -> bool:
    """Whether two answers are the same but for rounding, which may differ with the batch a request ran in.

    A score that one of them does not have is none: the weight of a sparse embedding may be rounded away.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return all(close(a.get(key, 0.0), b.get(key, 0.0), tolerance) for key in a.keys() | b.keys())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance * max(1.0, abs(b))
    return bool(a == b)


def _since(start: float) -> float:
    return round(1e3 * (time.perf_counter() - start), 3)
