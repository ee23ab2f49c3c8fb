"""The keys that clients must bring."""

from __future__ import annotations

import os
from pathlib import Path

from handler.config import ConfigError

VARIABLE = "EFFT_API_KEY"
"""Environment variable: one key, beside those of a file."""


def read_keys(path: Path | None) -> tuple[str, ...]:
    """A file's keys, one a line (blank lines and those that begin with # are none), and the environment's.

    Raises ConfigError in one line where a file is asked for and holds none.
    """
    given = os.environ.get(VARIABLE, "").strip()
    keys = [given] if given else []
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: the keys cannot be read ({type(error).__name__})") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ConfigError(f"{path} holds no key")
        keys += found
    return tuple(keys)
