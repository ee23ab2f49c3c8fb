"""Label names as a checkpoint's config gives them, and what of it transformers' pipelines do not read.

A name belongs to a row of the classifier. Where the config does not say which, nothing is made up: it is refused in one
line, and the setup config's ``labels`` settle it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.errors import BuildError

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
_SHOWN = 8
"""Numbers or names that a line shows."""


def check_map(folder: Path, source: str) -> None:
    """Raises BuildError where ``id2label`` of the folder's config.json is no map that transformers can read."""
    stated = _raw(folder).get("id2label")
    if stated is None:
        return
    if not isinstance(stated, dict):
        raise BuildError(f'{source}: id2label in config.json must be an object such as {{"0": "no", "1": "yes"}}')
    for key in stated:
        if not (key.strip().isascii() and key.strip().removeprefix("-").isdigit()):
            raise BuildError(
                f"{source}: id2label in config.json has the key {key!r:.40}; its keys are rows: 0, 1, 2 ..."
            )


def of_config(config: Any, source: str) -> list[str]:
    """Names by the classifier's rows. Raises BuildError where the config leaves it open which row has which name."""
    names: Mapping[int, Any] = config.id2label
    if not names:
        raise BuildError(f"{source}: id2label in config.json is empty; {_REMEDY}")
    if sorted(names) != list(range(len(names))):
        raise BuildError(
            f"{source}: id2label in config.json names the rows {_listed(sorted(names))}, "
            f"but {len(names)} rows are 0 to {len(names) - 1}; {_REMEDY}"
        )
    for row, name in names.items():
        if not isinstance(name, (str, int, float)) or not str(name).strip():
            raise BuildError(f"{source}: id2label in config.json gives row {row} no name; {_REMEDY}")
    return [str(names[row]) for row in range(len(names))]


_REMEDY = 'correct it, or list the names in their order as "labels" in the setup config'


def override(config: Any, labels: Sequence[str]) -> None:
    """Give a transformers config the setup config's names; with their number the classifier's rows."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: row for row, name in enumerate(labels)}


def check_rows(mismatched: Sequence[tuple[Any, ...]], config: Any, source: str) -> None:
    """Raises BuildError for weights of other shapes than the config's, the classifier's in words of its labels.

    ``mismatched``: (name, shape in the file, shape by the config), as transformers' loading report gives them.
    """
    if not mismatched:
        return
    name, found, expected = mismatched[0]
    if len(found) and list(found[1:]) == list(expected[1:]) and expected[0] == config.num_labels:
        counts = f"names {config.num_labels} labels, the classifier has {found[0]} rows"
        raise BuildError(f"{source}: config.json {counts} ({name}); {_REMEDY}")
    raise BuildError(f"{source}: {name} has the shape {list(found)}, by config.json it is {list(expected)}")


def problem_type(config: Any) -> str | None:
    """transformers' ``problem_type``; None where the config is silent or says what its pipelines do not know.

    Then the number of labels decides, as it does there (transformers 5.23, ``TextClassificationPipeline``).
    """
    stated = getattr(config, "problem_type", None)
    return stated if stated in PROBLEM_TYPES else None


def entailment(config: Any, source: str) -> int:
    """The row of the label that says that a claim follows from a text, as transformers' zero-shot pipeline finds it: by
    its name's beginning. Raises BuildError where there is none, or a single label."""
    rows = [row for name, row in config.label2id.items() if str(name).lower().startswith("entail")]
    if config.num_labels < 2 or not rows or not 0 <= rows[0] < config.num_labels:
        raise BuildError(
            f"{source}: zero_shot_classification needs a classifier with a label called entailment, and one that says "
            f"the contrary; {_REMEDY.removeprefix('correct it, or ')}"
        )
    return int(rows[0])


def remarks(folder: Path, config: Any) -> list[str]:
    """What the folder says of its labels that no pipeline reads, a line each, so that it is not dropped in silence."""
    raw = _raw(folder)
    found = []
    stated, names = raw.get("problem_type"), config.id2label or {}
    if stated and stated not in PROBLEM_TYPES:
        found.append(f"problem_type {stated!r:.40} is unknown to transformers; the number of labels decides")
    if function := raw.get("function_to_apply"):
        found.append(
            f"function_to_apply {function!r:.40} is not read by transformers' pipeline; to have it, set "
            '"function_to_apply" in the setup config'
        )
    rows = raw.get("id2label")
    if isinstance(rows, dict) and len(rows) != len(names):
        found.append(
            f"id2label names {len(rows)} labels, num_labels is {len(names)}; transformers drops the names then"
        )
    numbers = raw.get("label2id")
    if (
        isinstance(numbers, dict)
        and numbers
        and {str(k): str(v) for k, v in numbers.items()} != {str(name): str(row) for row, name in names.items()}
        and len(set(names.values())) == len(names)
    ):
        found.append("label2id does not agree with id2label; the names are id2label's, as in transformers' pipelines")
    if len(set(map(str, names.values()))) < len(names):
        found.append("id2label gives several labels the same name")
    return found


def _raw(folder: Path) -> dict[str, Any]:
    """config.json as it stands; empty where it cannot be read, which loading reports."""
    try:
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stated if isinstance(stated, dict) else {}


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:_SHOWN]))
    return shown if len(values) <= _SHOWN else f"{shown} ..."
