"""Print pinned dependencies of ``pyproject.toml``, a line each, for pip.

``python -m builder.requirements`` prints what ``make setup`` installs: ``dependencies`` and the extra ``dev``; with
names, those lists alone. Runs before anything is installed, so it reads the file without a TOML parser (Python 3.10
has none).
"""

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
SETUP = ("dependencies", "dev")


def pinned(text: str, lists: tuple[str, ...] = SETUP) -> list[str]:
    """Every ``"name==version"`` at the beginning of a line of the named lists."""
    bodies = [re.search(rf"^{name} = \[[^\n]*\n(.*?)^\]", text, re.MULTILINE | re.DOTALL) for name in lists]
    line = re.compile(r'^\s*"([A-Za-z0-9_.-]+==[^"]+)"', re.MULTILINE)
    return [requirement for body in bodies if body for requirement in line.findall(body.group(1))]


if __name__ == "__main__":
    print("\n".join(pinned(PROJECT.read_text(encoding="utf-8"), tuple(sys.argv[1:]) or SETUP)))
