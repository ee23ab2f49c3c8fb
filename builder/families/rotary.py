"""Rotary positions as a config states them: ``rope_parameters``, which transformers makes of the older keys too."""

from __future__ import annotations

from typing import Any

from builder.errors import BuildError

KINDS = ("default", "linear", "dynamic", "proportional", "llama3", "yarn")
"""Whose frequencies do not hang on a text's length. ``dynamic`` ones do beyond the longest text that is served."""


def rotary_traits(config: Any, head: int, kind: str | None = None) -> dict[str, Any]:
    """The spec's fields for rotary embedding over halves of a head; ``kind`` of layer, where there are several.

    Raises BuildError for frequencies that no engine can hold in a table.
    """
    stated = config.rope_parameters[kind] if kind else config.rope_parameters
    stated = stated or {}
    name = stated.get("rope_type", "default")
    if name not in KINDS:
        raise BuildError(f"rotary positions of type {name!r} are not supported; supported: {', '.join(KINDS)}")
    share = stated.get("partial_rotary_factor", 1.0)
    if share != 1.0:
        raise BuildError(f"partial_rotary_factor is {share}; only heads that are rotated whole are supported")
    return {"rotary": "halves", **_scaled(config, head, name, kind)}


def _scaled(config: Any, head: int, name: str, kind: str | None) -> dict[str, float]:
    """YaRN lengthens cosines and sines, those of queries and those of keys: products grow by the square."""
    if name != "yarn":
        return {}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    _, factor = ROPE_INIT_FUNCTIONS[name](config, None, **({"layer_type": kind} if kind else {}))
    return {} if factor == 1 else {"scale": factor * factor / head**0.5}
