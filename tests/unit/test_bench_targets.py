"""The GPU run's own arithmetic and its steps, on the CPU and on fakes."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import texts
from benchmarks.gpu import served_child, targets
from benchmarks.serving import empty
from tests.unit.handler_fakes import PooledLogits, save_archive


def row(server: str, connections: int, rate: float, p50: float | None) -> dict[str, Any]:
    return {"server": server, "connections": connections, "requests_per_second": rate, "p50": p50}


PROCESS = {"rows": {"1": {"total_ms": 0.4}, "32": {"total_ms": 1.7}}}


def test_figures_are_differences_and_shares() -> None:
    ours = [row("targets", 1, 300, 2.75), row("targets", 256, 15_000, 16)]
    theirs = [row(empty.NAME, 1, 500, 2.0), row(empty.NAME, 256, 20_000, 11)]
    memory = {"count": 8, "workers": 5_000, "context": 500, "weights": 400}
    found = targets.figures(ours, theirs, PROCESS, memory)
    assert found == {
        "requests_per_second_256": 15_000, "share_of_empty_256": 0.75, "one_connection_above_empty_ms": 0.75,
        "predict_1_ms": 0.4, "predict_32_ms": 1.7, "memory_over_weights": 2.5,
    }  # fmt: skip
    lines = targets.verdicts(found)
    assert [line.split(": ")[-1] for line in lines] == ["kept", "MISSED", "kept", "kept", "MISSED", "MISSED"]


def test_what_was_not_measured_is_said() -> None:
    nothing = {"count": 2, "workers": 0, "context": 0, "weights": 0}
    found = targets.figures([row("targets", 1, 0, None)], [row(empty.NAME, 1, 9, 2.0)], PROCESS, nothing)
    assert found["one_connection_above_empty_ms"] is found["memory_over_weights"] is None
    assert sum("not measured" in line for line in targets.verdicts(found)) == 4


def test_a_request_in_process_has_a_share_of_its_own(tmp_path: Path) -> None:
    folder = save_archive(tmp_path / "files", PooledLogits(2), "sequence_classification", {"warm_up": False})
    archive, plan = tmp_path / "fake.mar", tmp_path / "plan.json"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in folder.iterdir():
            packed.write(file, file.name)
    plan.write_text(json.dumps([json.dumps({"text": f"the cat sat {n}"}) for n in range(70)]))
    found = served_child.predict("cpu", str(archive), str(plan))
    assert found["device"] == "cpu"
    assert set(found["rows"]) == {"1", "8", "32", "64"}
    for figures in found["rows"].values():
        assert 0 < figures["own_ms"] < figures["total_ms"]
        assert 0 < figures["model_ms"] < figures["total_ms"]


def test_without_the_samples_package_a_tokenizer_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = served_child.tokenizer_folder(tmp_path / "own")
    mean = texts.mean_tokens(targets.asked(folder / "tokenizer.json", 100), folder / "tokenizer.json")
    assert 30 < mean < 45
