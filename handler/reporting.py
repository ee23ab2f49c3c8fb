"""Hands a worker's figures over once a second, beside the requests and also after the last one of a burst."""

from __future__ import annotations

import threading

from handler.metrics import Metrics, Sink


class Reporter:
    """A thread that hands ``metrics`` to ``sink`` every ``interval`` seconds while there is something new.

    It is started by the first :meth:`wake` and sleeps without a timer while nothing is asked.
    """

    def __init__(self, metrics: Metrics, sink: Sink, interval: float = 1.0) -> None:
        self._metrics = metrics
        self._sink = sink
        self._interval = interval
        self._new = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Say that there are new figures."""
        if not self._new.is_set():
            self._new.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="efft-figures", daemon=True)
                self._thread.start()

    def hand_over(self) -> None:
        """Everything gathered so far, now."""
        self._new.clear()
        with self._metrics.lock:
            samples = self._metrics.taken()
        for sample in samples:
            self._sink(sample)

    def _run(self) -> None:
        pause = threading.Event()  # never set: a sleep that an ending interpreter does not wait for
        while True:
            self._new.wait()
            self.hand_over()
            pause.wait(self._interval)
