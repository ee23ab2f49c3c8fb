"""The last line of a command: what nobody foresaw is kept in a file and told in one line."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress

UNEXPECTED = 70
"""The exit status of a fault of the program's own (sysexits.h: EX_SOFTWARE)."""
INTERRUPTED = 130


def guarded(program: str, run: Callable[[], int]) -> int:
    """``run``'s exit status; of what it raises one line on stderr.

    Files that cannot be read or written and exhausted memory are the user's to mend (exit status 1); anything else is
    a fault of the program's own, whose trace goes into a file.
    """
    try:
        return run()
    except KeyboardInterrupt:
        return _say(program, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (as in `| head`); the interpreter would complain once more when it ends.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(program, _of_system(error), 1)
    except MemoryError:
        return _say(program, "not enough memory; free some, or take a machine with more", 1)
    except RecursionError as error:
        return _say(program, f"something is nested too deeply to be read; {_kept(error)}", UNEXPECTED)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return _say(program, f"unexpected {what}; {_kept(error)}", UNEXPECTED)


def _of_system(error: OSError) -> str:
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}"


def _kept(error: BaseException) -> str:
    """Where the trace went, and what to do with it."""
    trace = "".join(traceback.format_exception(error))
    try:
        handle, path = tempfile.mkstemp(prefix="efft-", suffix=".trace.txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{' '.join(sys.orig_argv)}\n{trace}")
    except OSError:
        return "its trace could not be kept: no folder for temporary files can be written to"
    return f"this is a fault of the program: its trace is in {path}; please report it with that file"


def _say(program: str, text: str, status: int) -> int:
    sys.stderr.write(f"{program}: {text}\n")
    return status
