"""How far a run is: rows, rows a second, time left."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from handler.bulk.sources import Source

SELDOM = 30.0
"""Seconds between lines where no terminal shows them."""


class Progress:
    """A bar on standard error; where rows are not counted beforehand, their number is an estimate by bytes."""

    def __init__(self, source: Source, start: int, who: str, quiet: bool) -> None:
        self._source = source
        if not quiet:
            sys.stderr.write(f"{who}{f', from row {start:,} on' if start else ''}\n")
        self._bar: Any = tqdm(
            total=source.total(),
            initial=start,
            unit=" rows",
            unit_scale=True,
            disable=quiet,
            mininterval=0.5 if sys.stderr.isatty() else SELDOM,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, rows: int, errors: int) -> None:
        """So many more rows are done; ``errors``: of all rows of this run."""
        self._bar.total = self._source.total()
        if errors:
            self._bar.set_postfix_str(f"{errors} errors", refresh=False)
        self._bar.update(rows)
