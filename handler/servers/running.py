"""Which requests run, and whether new ones are still taken: the folder of handler/draining.py for a whole server."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from handler.draining import BUSY, STOP, Drain

POLL = 0.05
"""Seconds between two looks whether everything has been answered."""


class Running:
    """The requests of one event loop. While any runs, the folder's lock is held, as a TorchServe worker holds it."""

    def __init__(self, drain: Drain | None = None) -> None:
        self._drain = drain or Drain.of_environment()
        self._held = ExitStack()
        self._count = 0
        self.closing = False
        """Set by a server that has been told to end: what comes now is refused."""

    @property
    def stopping(self) -> bool:
        """Whether requests are refused."""
        return self.closing or self._drain.stopping

    @contextmanager
    def request(self) -> Iterator[bool]:
        """Around a request; gives whether the server is stopping, so that it is to be refused."""
        if self.stopping or (self._count == 0 and self._held.enter_context(self._drain.busy())):
            if self._count == 0:
                self._held.close()
            yield True
            return
        self._count += 1
        try:
            yield False
        finally:
            self._count -= 1
            if self._count == 0:
                self._held.close()


def close(folder: Path, timeout: float) -> bool:
    """Have the servers that watch ``folder`` refuse new requests, and wait until those that run have their answers;
    False where ``timeout`` seconds were not enough."""
    (folder / STOP).touch()
    end = time.monotonic() + timeout
    with (folder / BUSY).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > end:
                    return False
                time.sleep(POLL)
