"""``python -m benchmarks tables FILE...``: put the newest results' tables where a document has room for them.

A document has a line ``<!-- KIND-DEVICE -->`` and, further down, ``<!-- /KIND-DEVICE -->``; what stands between is
replaced by the tables of the newest result of that name in ``benchmarks/results`` and the file's own name.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks import results, table

_ROOM = re.compile(r"<!-- ([a-z]+-[a-z]+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("documents", type=Path, nargs="+", metavar="FILE", help="Markdown with room for tables")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder of the JSON files")


def run(options: argparse.Namespace) -> None:
    """Fill the documents in place; says which result stands where."""
    for document in options.documents:
        text = document.read_text(encoding="utf-8")
        names = [name for name, _ in _ROOM.findall(text)]
        if not names:
            raise ValueError(f"{document.name} has no room for a table: no line <!-- KIND-DEVICE -->")
        document.write_text(_ROOM.sub(lambda found: _filled(found, options.results), text), encoding="utf-8")
        for name in names:
            newest = _newest(name, options.results)
            print(f"{document.name}, {name}: {newest.name if newest else 'no result yet'}")


def _newest(name: str, folder: Path) -> Path | None:
    return max(folder.glob(f"{name}-2*.json"), default=None)


def _filled(found: re.Match[str], folder: Path) -> str:
    name = found[1]
    newest = _newest(name, folder)
    if newest is None:
        return found[0]
    tables = [one.text() for one in table.of(results.load(newest))]
    return f"<!-- {name} -->\n\n" + "\n".join(tables) + f"\n(`{newest.name}`)\n\n<!-- /{name} -->"
