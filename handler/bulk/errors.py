"""What stops a bulk run."""

from __future__ import annotations


class BulkError(ValueError):
    """A run that cannot begin or go on; the message is one line that says what to do."""


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
