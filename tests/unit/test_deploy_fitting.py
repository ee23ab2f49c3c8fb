"""What `make serve` says and does for archives that were not tuned here."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builder.serving import processor
from deploy import fitting
from tests.unit.handler_fakes import facts


def store(folder: Path, workers: int = 1, **changes: Any) -> SimpleNamespace:
    with zipfile.ZipFile(folder / "fake.mar", "w") as packed:
        packed.writestr("archive.json", facts("sequence_classification", **changes).model_dump_json())
        packed.writestr("model-config.yaml", f"maxWorkers: {workers}\n")
    (folder / "foreign.mar").write_bytes(b"not ours")
    return SimpleNamespace(store=folder)


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the server was asked for; two GPUs and 16 cores."""
    done: list[tuple[str, int]] = []
    monkeypatch.setattr(fitting, "gpus", lambda: 2)
    monkeypatch.setattr(fitting, "available_cores", lambda: 16)
    monkeypatch.setattr(fitting, "scale", lambda server, name, workers: done.append((name, workers)))
    return done


def test_gpus_get_workers_and_the_offer_names_the_command(tmp_path: Path, scaled: list[Any]) -> None:
    (line,) = fitting.fit(store(tmp_path), ["fake", "foreign"])  # type: ignore[arg-type]
    assert scaled == [("fake", 8)]
    assert line.startswith("fake: 8 workers for this machine's GPUs")
    assert line.endswith(f"python -m builder tune {tmp_path.name}/fake.mar")


CPU_ONLY = {"format": "torchscript", "file": "model.pt", "devices": ["cpu"]}


@pytest.mark.parametrize(
    "changes",
    [{"workers": 3}, {"tuned": {"processor": processor()}}, {"model": CPU_ONLY}],
    ids=["settled", "tuned", "cpu"],
)
def test_what_is_settled_stays(tmp_path: Path, scaled: list[Any], changes: dict[str, Any]) -> None:
    lines = fitting.fit(store(tmp_path, **changes), ["fake"])  # type: ignore[arg-type]
    assert not scaled
    assert len(lines) == ("tuned" not in changes)


def test_an_archive_that_was_tuned_elsewhere_is_offered_again(tmp_path: Path, scaled: list[Any]) -> None:
    (line,) = fitting.fit(store(tmp_path, workers=2, tuned={"processor": "another"}), ["fake"])  # type: ignore[arg-type]
    assert "was tuned on another machine (another)" in line


def test_workers_on_gpus_sleep_unless_told(monkeypatch: pytest.MonkeyPatch, scaled: list[Any]) -> None:
    monkeypatch.delenv(fitting.WAIT, raising=False)
    monkeypatch.setenv(fitting.WAIT, "spin")
    fitting.prepare()
    assert fitting.os.environ[fitting.WAIT] == "spin"
    monkeypatch.delenv(fitting.WAIT)
    fitting.prepare()
    assert fitting.os.environ.pop(fitting.WAIT) == "block"
