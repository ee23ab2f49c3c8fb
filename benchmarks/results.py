"""Result files: one JSON per run under ``benchmarks/results/``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def save(kind: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write a run's result as ``KIND-DEVICE-DATE.json`` and return the path."""
    stamp = result["date"][:19].replace(":", "").replace("T", "-")
    path = folder / f"{kind}-{result['device']['kind']}-{stamp}.json"
    folder.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_text(_text({"kind": kind, **result}), encoding="utf-8")
    return half.replace(path)


def _text(result: dict[str, Any]) -> str:
    """JSON with a line for each of the result's facts and each row, which differences show well."""
    facts = []
    for name, value in result.items():
        rows = value if isinstance(value, list) else []
        lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
        facts.append(f"{json.dumps(name)}: " + (f"[\n  {lines}\n ]" if rows else json.dumps(value, ensure_ascii=False)))
    return "{\n " + ",\n ".join(facts) + "\n}\n"


def load(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ValueError when it is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(result, dict) or not {"kind", "date", "device", "rows"} <= result.keys():
        raise ValueError(f"{path.name} is no benchmark result")
    return result


def require_encoder(result: dict[str, Any]) -> None:
    """Raises ValueError for a result without engines."""
    if result["kind"] != "encoder":
        raise ValueError(f"a result of kind {result['kind']} has no engines to compare")


def newest(kind: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The results of a kind, the newest first. Raises ValueError for a file that is none."""
    found = [result for result in map(load, sorted(folder.glob("*.json"))) if result["kind"] == kind]
    return sorted(found, key=lambda result: result["date"], reverse=True)


MACHINE = ("kind", "gpu", "processor", "processor_model", "threads")
"""What two results of one machine have in common."""


def key(row: dict[str, Any], fields: Iterable[str]) -> tuple[Any, ...]:
    """A row's identity."""
    return tuple(row[field] for field in fields)
