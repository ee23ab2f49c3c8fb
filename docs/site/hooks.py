"""mkdocs hooks: the README, CONTRIBUTING and CHANGELOG as pages, links to source files as the names of those files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:]*)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie beside ``docs``."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](")
        for name, other in PAGES.items():
            text = text.replace(f"]({name}", f"]({other}")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A link to a file that is no page (sources, results) becomes the file's name: the site holds pages only."""

    def replaced(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if not target or target.endswith((".html", ".png")) or target.startswith("../docs/"):
            return found[0]
        name = target.removeprefix("../")
        if name in PAGES:
            return f"[{text}]({PAGES[name]}{found[3] or ''})"
        return found[0] if files.get_file_from_path(name) else f"`{name}`" if text == name else f"{text} (`{name}`)"

    return _LINK.sub(replaced, markdown)
