"""A stopping server: which requests still run, and which are sent away.

The environment's ``EFFT_DRAIN`` names a folder. Once it holds a file ``stop``, a worker begins no more work: what
reaches it is answered 503 with Retry-After. While a worker computes it keeps a shared lock on the folder's file
``busy``; who gets that lock exclusively, after ``stop`` was written, knows that every request that was running has its
answer. The kernel gives a dead worker's lock back. Without the variable nothing is locked and nothing refused.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)
VARIABLE = "EFFT_DRAIN"
STOP = "stop"
BUSY = "busy"
LAST_ANSWERS = 1.0
"""Seconds that a process lives on after its device has failed."""


def end_process() -> None:
    """Soon, so that the answers under way still go out. Who runs the server starts another."""
    timer = threading.Timer(LAST_ANSWERS, lambda: os._exit(1))
    timer.daemon = True
    timer.start()


class Drain:
    """One worker's view of the folder; ``folder`` None: this server is never drained."""

    def __init__(self, folder: Path | None) -> None:
        self._stop: str | None = None
        self._lock: int | None = None
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / BUSY, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._stop = str(folder / STOP)
        except OSError as error:  # a read-only disk must not keep a model from being served
            logger.warning("%s=%s cannot be used (%s); this worker does not drain", VARIABLE, folder, error.strerror)

    @classmethod
    def of_environment(cls) -> Drain:
        """By the variable ``EFFT_DRAIN``."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder) if folder else None)

    @property
    def stopping(self) -> bool:
        """Whether the folder says so."""
        return self._stop is not None and os.path.exists(self._stop)

    @contextmanager
    def busy(self) -> Iterator[bool]:
        """Around a batch; gives whether the server is stopping, so that the batch is to be refused."""
        if self._lock is None or self._stop is None:
            yield False
        elif os.path.exists(self._stop):  # without the lock, so that refusals do not keep the one who waits waiting
            yield True
        else:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            try:
                # Asked again: the folder may have been closed between the question and the lock.
                yield os.path.exists(self._stop)
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
