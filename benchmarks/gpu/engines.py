"""The engines of ``benchmarks.engines`` on one device, each made once for all stages of a check, and all checked."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from benchmarks import machine
from benchmarks.measuring import Group, Setting
from benchmarks.models import Source, load_source
from benchmarks.table import OURS
from benchmarks.tf32 import stored
from benchmarks.workloads import Batch, Workload


class Engines:
    """Groups of engines by model and type."""

    def __init__(self, device: str) -> None:
        self.setting = Setting(device, machine.threads_available())
        self.failures: list[str] = []
        """Where our own engine's output was not right, or where there was none."""
        self._sources: dict[str, Source] = {}
        self._groups: dict[tuple[str, str], Group] = {}

    def group(self, model: str, data_type: str, names: Iterable[str]) -> Group:
        """A model's engines, those of these names made where they are not there yet and can be.

        ``data_type``: fp16, bf16, fp32, or tf32, whose engines are fp32's.
        """
        if model not in self._sources:
            self._sources[model] = load_source(model)
        key = model, stored(data_type)
        if key not in self._groups:
            self._groups[key] = Group(self._sources[model], stored(data_type), self.setting)
        group = self._groups[key]
        tried = {*group.engines, *(entry["engine"] for entry in group.absent)}
        group.build([name for name in names if name not in tried])
        return group if data_type == group.data_type else group.under(data_type)

    def check(
        self, group: Group, batch: Batch, names: Iterable[str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Callable[[], Any]]]:
        """As :meth:`Group.check`, of those engines that there are; our own must be there and right, or it is noted."""
        names = list(names)
        rows, calls = group.check(batch, [name for name in names if name in group.engines])
        self.judge(group, batch.workload, names, {name: row["refused"] for name, row in rows.items()})
        return rows, calls

    def judge(self, group: Group, workload: Workload, names: Iterable[str], refused: Mapping[str, str | None]) -> None:
        """Note it where our own engine is among ``names`` and was ``refused``, or is not there."""
        if OURS in names:
            absent = {entry["engine"]: entry["reason"] for entry in group.absent}
            reason = refused[OURS] if OURS in refused else absent[OURS]
            if reason is not None:
                self.failures.append(f"{group.source.name} {group.data_type} {workload.name}: {reason}")

    def release(self) -> None:
        """Let everything go that takes memory, but our own engines, which several stages want."""
        for group in self._groups.values():
            group.keep([OURS])
        self.setting.release_references()
        gc.collect()
        if self.setting.device == "cuda":
            torch.cuda.empty_cache()

    @property
    def absent(self) -> list[dict[str, str]]:
        """Engines that could not be made, with the reason."""
        return [entry for group in self._groups.values() for entry in group.absent]
