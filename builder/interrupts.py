"""SIGTERM and SIGHUP end a command as SIGINT does: temporary folders go, and so do child processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end."""


def interruptible(command: Callable[[], int]) -> int:
    """Run ``command``; its exit status, or 128 + a signal's number where that ended it, as shells have it.

    Signals that the process was started to ignore (nohup) stay ignored.
    """
    caught: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        for other in _SIGNALS:  # a second one must not break off the tidying
            signal.signal(other, signal.SIG_IGN)
        caught.append(number)
        _kill_children()
        raise Interrupted

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        status = command()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    if caught:
        print(f"builder: ended by {signal.Signals(caught[0]).name}; nothing was left half done", file=sys.stderr)
        return 128 + caught[0]
    return status


def _kill_children() -> None:
    """Children and theirs, now: once a compiler's driver has ended, nobody knows whose its passes were."""
    import psutil

    for child in psutil.Process(os.getpid()).children(recursive=True):
        try:
            child.kill()
        except psutil.Error:  # it has just ended
            continue
