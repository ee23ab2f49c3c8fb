"""Draws docs/figures/design.svg from the sources: ``make picture``.

A box is a folder, an arrow an import (of kernels an #include) from one folder to another; what is drawn below is used
by what is above. Dashed arrows to the kernels are what no import shows: the operators' names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIGURE = ROOT / "docs" / "figures" / "design.svg"
PACKAGES = ("deploy", "builder", "handler")
_INCLUDE = re.compile(r'#include [<"](efft/[^>"]+)[>"]')
_OPERATORS = "torch.ops.efft"
WIDTH = 24.0
"""Of the picture, in the units of :func:`places`."""
Edge = tuple[str, str]


def edges() -> set[Edge]:
    """(user, used) of folders such as ``builder/gate``, read from the sources."""
    found = {edge for package in PACKAGES for file in _python(package) for edge in _imports(file)}
    return {(user, used) for user, used in found | set(_includes()) if user != used}


def nodes() -> list[str]:
    """Every folder with sources, in the order of their names."""
    python = {_folder(file) for package in PACKAGES for file in _python(package)}
    return sorted(python | {_of_kernel(file) for file in _kernel_files()})


def summary(node: str) -> str:
    """A folder's docstring's first sentence, without its end; empty where it has none."""
    file = ROOT / node / "__init__.py"
    text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "") if file.exists() else ""
    return re.split(r"[.:;]\s|[.:]$", text.replace("\n", " ").replace("``", ""))[0]


def _python(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _folder(file: Path) -> str:
    return file.parent.relative_to(ROOT).as_posix()


def _imports(file: Path) -> Iterator[Edge]:
    text = file.read_text(encoding="utf-8")
    if _OPERATORS in text:
        yield _folder(file), "kernels/torch"
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.partition(".")[0] in PACKAGES:
                yield _folder(file), _defining(name)


@cache
def _defining(name: str) -> str:
    """The folder of the module that a dotted name is, or is in."""
    parts = name.split(".")
    while parts:
        path = ROOT.joinpath(*parts)
        if path.with_suffix(".py").exists():
            return _folder(path.with_suffix(".py"))
        if (path / "__init__.py").exists():
            return path.relative_to(ROOT).as_posix()
        parts.pop()
    raise ValueError(f"no module {name}")


def _kernel_files() -> list[Path]:
    return sorted(file for file in (ROOT / "kernels").rglob("*") if file.suffix in {".h", ".cuh", ".cpp", ".cu"})


def _of_kernel(file: Path) -> str:
    """Headers count with the sources that they are the heads of; those for both devices with ``core``."""
    parts = [part for part in file.relative_to(ROOT / "kernels").parts[:-1] if part not in ("include", "efft")]
    return "/".join(["kernels", *(parts[:1] or ["core"])])


def _includes() -> Iterator[Edge]:
    for file in _kernel_files():
        for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
            header = ROOT / "kernels" / "include" / name
            if header.exists():
                yield _of_kernel(file), _of_kernel(header)


def layers(members: list[str], arrows: set[Edge]) -> list[list[str]]:
    """Members in rows, users above what they use; among those that use each other the one with more users is lower."""
    weight = {one: len([1 for user, used in arrows if used == one]) for one in members}
    within = {(a, b) for a, b in arrows if a in weight and b in weight}
    down = {(a, b) for a, b in within if (b, a) not in within or (weight[b], b) > (weight[a], a)}
    depth = dict.fromkeys(members, 0)
    for _ in members:
        for a, b in sorted(down):
            depth[b] = max(depth[b], min(depth[a] + 1, len(members) - 1))
    rows: dict[int, list[str]] = {}
    for one in members:
        rows.setdefault(depth[one], []).append(one)
    return [rows[level] for level in sorted(rows)]


def places() -> dict[str, tuple[float, float]]:
    """Where each folder's box has its middle: deploy, then builder beside handler, then kernels."""
    found: dict[str, tuple[float, float]] = {}
    arrows = edges()
    for package, left, width, top in (("deploy", 0, WIDTH, 0), ("builder", 0, 13.4, 2.2), ("handler", 14, 10, 2.2)):
        own = [node for node in nodes() if node.split("/")[0] == package]
        for level, row in enumerate(layers(own, arrows)):
            for index, node in enumerate(row):
                found[node] = left + (index + 0.5) * width / len(row), top + 1.8 * level
    bottom = max(y for _, y in found.values()) + 2.2
    own = [node for node in nodes() if node.startswith("kernels/")]
    for level, row in enumerate(layers(own, arrows)):
        for index, node in enumerate(row):
            found[node] = (index + 0.5) * WIDTH / len(row), bottom + 1.8 * level
    return found


def draw(path: Path) -> None:
    """Write the picture as SVG, each arrow with its ends as id; the same bytes for the same sources."""
    import textwrap

    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "efft"}
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    at = places()
    colours = {"deploy": "#fff3c4", "builder": "#d7e8ff", "handler": "#d9f2dd", "kernels": "#f6d9e0"}
    lowest = max(y for _, y in at.values())
    figure, axes = plt.subplots(figsize=(15, 0.6 * lowest + 1))
    wide, high = 3.0, 1.02
    boxes = {}
    for node, (x, y) in at.items():
        corner = x - wide / 2, y - high / 2
        colour = colours[node.split("/")[0]]
        boxes[node] = FancyBboxPatch(corner, wide, high, "round,pad=0.02", facecolor=colour, edgecolor="#57606a")
        axes.add_patch(boxes[node]).set_zorder(3)
        lines = textwrap.wrap(summary(node), 36)[:3]
        size = 8.0 if len(node) < 24 else 6.2
        axes.text(x, y - 0.3 if lines else y, node, ha="center", va="center", fontsize=size, weight="bold", zorder=4)
        for number, line in enumerate(lines):
            axes.text(x, y + 0.23 * number, line, ha="center", va="center", fontsize=5.4, zorder=4)
    for user, used in sorted(edges()):
        operators = used == "kernels/torch" and not user.startswith("kernels/")
        arrow = FancyArrowPatch(
            at[user], at[used], patchA=boxes[user], patchB=boxes[used], shrinkA=0, shrinkB=1, arrowstyle="-|>",
            mutation_scale=8, linewidth=0.8, connectionstyle="arc3,rad=0.1", alpha=0.8,
            color="#cf222e" if operators else "#8c959f", linestyle="--" if operators else "-", gid=f"{user} -> {used}",
        )  # fmt: skip
        axes.add_patch(arrow).set_zorder(2)
    axes.set(xlim=(-0.4, WIDTH + 0.4), ylim=(lowest + 1, -0.9))
    axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    draw(FIGURE)
    print(FIGURE.relative_to(ROOT))
