"""SIGTERM and SIGHUP leave what SIGINT leaves."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal that asks to end; ``number`` is which. As Ctrl-C's, it passes every ``except Exception``."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def raise_interrupts() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into :class:`Interrupted`, once: while things are put away no second one comes
    in between. A signal that was ignored from the start (``nohup``) stays ignored."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, lambda *_: None)  # not SIG_IGN, which processes started meanwhile would inherit
        raise Interrupted(number)

    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    for number in numbers:
        signal.signal(number, interrupt)
