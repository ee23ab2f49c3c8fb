"""Gives freed memory back to the system, so that a worker's resident set stays flat.

Batches of every size leave holes between what stays (remembered words, metrics), which glibc keeps for itself: some
20 MB after a minute, and slowly more (``malloc_trim(3)``, which gives back whole pages wherever they lie).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

INTERVAL = 30.0
"""Seconds; a call takes some 5 ms with holes of 20 MB."""


def _malloc_trim() -> Callable[[], object]:
    """glibc's; nothing where the C library is another."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    trim.argtypes = [ctypes.c_size_t]
    return lambda: trim(0)


class Trimmer:
    """Calls ``trim`` (default: glibc's for the whole process) at most once in ``interval`` seconds."""

    def __init__(self, interval: float = INTERVAL, trim: Callable[[], object] | None = None) -> None:
        self._interval = interval
        self._trim = trim or _malloc_trim()
        self._next = time.monotonic() + interval

    def tick(self) -> None:
        """Between two batches; costs a look at the clock."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval
            self._trim()
