"""A run's time, dealt out so that it ends when it was asked to, on a slow machine too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


class Budget:
    """Time until ``end`` (seconds of ``clock``) for parts with weights.

    A part may use its weight's share of what is left when it begins: what one saves or overruns, the later ones share.
    """

    def __init__(self, end: float, weights: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self.end = end
        self.weights = list(weights)
        self.clock = clock

    def next(self) -> float:
        """Begin the next part; returns when it should end. Raises IndexError after the last part."""
        now, total = self.clock(), sum(self.weights)
        return now + (self.end - now) * self.weights.pop(0) / total
