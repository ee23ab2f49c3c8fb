"""Result files: one JSON per run under ``benchmarks/results/``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def save(kind: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write a run's result as ``KIND-DEVICE-DATE.json`` and return the path."""
    stamp = result["date"][:16].replace(":", "").replace("T", "-")
    path = folder / f"{kind}-{result['device']['kind']}-{stamp}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": kind, **result}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ValueError when it is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(result, dict) or not {"kind", "date", "device", "rows"} <= result.keys():
        raise ValueError(f"{path.name} is no benchmark result")
    return result


def newest(kind: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The newest result of a kind for each device, CPU first."""
    latest: dict[str, dict[str, Any]] = {}
    for result in sorted((load(path) for path in folder.glob("*.json")), key=lambda r: r["date"]):
        if result["kind"] == kind:
            latest[result["device"]["kind"]] = result
    return [latest[device] for device in sorted(latest)]


def key(row: dict[str, Any], fields: Iterable[str]) -> tuple[Any, ...]:
    """A row's identity."""
    return tuple(row[field] for field in fields)
