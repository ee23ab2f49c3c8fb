"""The report's HTML: no script, no font, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.table import Table


@dataclass(frozen=True)
class Picture:
    """A PNG's file name, beside the page, and its size in pixels."""

    file: str
    width: int
    height: int


@dataclass(frozen=True)
class Image:
    """A plot for wide and for narrow screens, and what it shows in words."""

    wide: Picture
    narrow: Picture
    description: str


@dataclass(frozen=True)
class Section:
    """One result file."""

    kind: str
    place: str
    """Where and when it was measured."""
    origin: str
    images: Sequence[Image]
    tables: Sequence[Table]

    @property
    def title(self) -> str:
        """The section's heading."""
        return f"{self.kind}: {self.place}"

    @property
    def anchor(self) -> str:
        """The section's id."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; font-size: 1.3rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; } nav ul { margin: 0 0 .8rem; padding-left: 1.2rem; }
.origin, .note { color: #57606a; font-size: .875rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img { width: 100%; max-width: 56rem; height: auto; }
figcaption { color: #57606a; font-size: .875rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .25rem .6rem; border: 1px solid #d0d7de; text-align: left; white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
thead th { background: #f6f8fa; }
"""


def page(sections: Sequence[Section], overview: Sequence[Table]) -> str:
    """The whole page: an overview, then the sections."""
    short = "\n".join(_table(table) for table in overview)
    body = "\n".join(_section(section) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmarks</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Benchmarks</h1>
<p>Drawn from the result files beside this folder; how each figure is made, and what is fair about it and what is
not, stands in docs/benchmarks.md.</p>
<h2>In short</h2>
<p>From the least to the greatest over all workloads: how many times as fast as ths, which share of the time of the best
other engine, how many times the floor.</p>
{short}
<h2>All results</h2>
<nav>{_links(sections)}</nav>
{body}
</body>
</html>
"""


def _links(sections: Sequence[Section]) -> str:
    kinds: dict[str, list[str]] = {}
    for section in sections:
        link = f'<li><a href="#{section.anchor}">{escape(section.place)}</a></li>'
        kinds.setdefault(section.kind, []).append(link)
    return "\n".join(f"<h3>{escape(kind)}</h3><ul>{''.join(links)}</ul>" for kind, links in kinds.items())


def _section(section: Section) -> str:
    figures = "\n".join(_figure(image) for image in section.images)
    tables = "\n".join(_table(table) for table in section.tables)
    return f"""<section id="{section.anchor}">
<h2>{escape(section.title)}</h2>
<p class="origin">{escape(section.origin)}</p>
{figures}
{tables}
</section>"""


def _figure(image: Image) -> str:
    text = escape(image.description)
    wide, narrow = image.wide, image.narrow
    size = f'width="{wide.width}" height="{wide.height}"'
    other = (
        f'<source media="(max-width: 40rem)" srcset="{narrow.file}" width="{narrow.width}" height="{narrow.height}">'
    )
    picture = f'<picture>{other}<img src="{wide.file}" {size} alt="{text}"></picture>'
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in table.lines)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    title = f"<h3>{escape(table.title)}</h3>"
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    return f"{title}{body}{notes}"
