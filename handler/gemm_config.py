"""``gemm_config.json``: measured cuBLASLt algorithms of an archive, used only where they were measured."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

NAME = "gemm_config.json"
TYPES = ("fp32", "fp16", "bf16")
COLUMNS = (
    "type", "tf32", "rows", "outputs", "inputs", "algorithm", "tile", "split_k", "reduction", "swizzle", "option",
    "stages", "inner_shape", "cluster", "nanoseconds",
)  # fmt: skip
"""A plan's fields, in the order the operators ``tune_product`` and ``use_plans`` know them by."""


def environment() -> dict[str, str]:
    """The facts an algorithm's time depends on, of the current GPU."""
    facts = dict(item.split("=", 1) for item in torch.ops.efft.describe_cuda().split())
    return {key: facts[key] for key in ("device", "driver", "cublaslt")}


def use(folder: Path) -> int:
    """Hand the archive's plans to the CUDA library, on the current GPU; returns how many it took.

    A config measured elsewhere is left alone with a warning, as is one that cannot be read: the library then chooses
    by its heuristics.
    """
    path = folder / NAME
    if not path.exists():
        return 0
    try:
        config = json.loads(path.read_text())
        measured, plans = config["environment"], [_row(plan) for plan in config["plans"]]
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is not readable (%s) and is ignored", NAME, error)
        return 0
    here = environment()
    if measured != here:
        changed = ", ".join(
            f"{key} {measured.get(key)} -> {here[key]}" for key in here if measured.get(key) != here[key]
        )
        logger.warning("%s was measured elsewhere (%s) and is ignored", NAME, changed)
        return 0
    if not plans:
        return 0
    taken = int(torch.ops.efft.use_plans(torch.tensor(plans, dtype=torch.int64)))
    if taken < len(plans):
        logger.warning("%s: cuBLASLt refuses %d of %d plans", NAME, len(plans) - taken, len(plans))
    return taken


def _row(plan: dict[str, Any]) -> list[int]:
    return [TYPES.index(plan["type"]), *(int(plan[column]) for column in COLUMNS[1:])]
