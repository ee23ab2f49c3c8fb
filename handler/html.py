"""An explanation as a page: the words coloured by their share."""

from __future__ import annotations

from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Explanation</title>
<style>body {{ font: 16px/1.8 sans-serif; max-width: 50em; margin: 2em auto }}
span {{ border-radius: 3px; padding: 1px 2px }} small {{ color: #666 }}</style>
{parts}
<p><small>Green speaks for the target, red against it; the deeper, the more. Integrated gradients on the word
embeddings.</small></p></html>
"""


def page(explanations: list[dict[str, Any]]) -> str:
    """A page with one section for each explanation, error or side of an answer."""
    return _PAGE.format(parts="\n".join(_section(explanation) for explanation in explanations))


def _section(explanation: dict[str, Any]) -> str:
    if "error" in explanation:
        return f"<p>{escape(explanation['error']['message'])}</p>"
    if "tokens" not in explanation:
        sides = [_section(side) for side in explanation.values() if isinstance(side, dict)]
        return "\n".join([*sides, *_cut(explanation)])
    head = f"{escape(explanation['target'])} <small>convergence delta {explanation['delta']:.4f}</small>"
    return "\n".join([f"<h2>{head}</h2>\n<p>{_words(explanation['tokens'])}</p>", *_cut(explanation)])


def _cut(explanation: dict[str, Any]) -> list[str]:
    dropped = explanation.get("dropped_tokens")
    return [f"<p><small>{dropped} tokens more were cut off.</small></p>"] if dropped else []


def _words(tokens: list[dict[str, Any]]) -> str:
    largest = max((abs(token["attribution"]) for token in tokens), default=0.0) or 1.0
    pieces = []
    previous: dict[str, Any] | None = None
    for token in tokens:
        if previous is not None and (token["text"], token["start"]) != (previous["text"], previous["end"]):
            pieces.append(" " if token["text"] == previous["text"] else "<br>")
        strength = token["attribution"] / largest
        colour = f"rgba({'0,150,60' if strength > 0 else '210,40,40'},{abs(strength):.2f})"
        title = f"{token['attribution']:.4f}"
        pieces.append(f'<span style="background:{colour}" title="{title}">{escape(token["token"])}</span>')
        previous = token
    return "".join(pieces)
