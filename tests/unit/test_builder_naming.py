"""Archive names, and where a model's folder is found."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from builder.checkpoint import load
from builder.cli import main
from builder.errors import BuildError
from builder.naming import archive_name, hub_name
from handler.config import SetupConfig
from tests.checkpoints import make_checkpoint


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("my model", "my-model"),
        ("_export", "export"),
        ("v1.2.ft", "v1.2.ft"),
        ("größe", "grosse"),
        ("Ærøskøbing", "Aeroskobing"),
        ("org/model", "model"),
        ("a$(touch x);b", "a-touch-x-b"),
        ("...x...", "x"),
        ("m" * 300, "m" * 128),
        ("模型-v2", "v2"),
    ],
)
def test_a_name_is_made_of_the_folders(source: str, name: str) -> None:
    assert archive_name(None, source) == name
    assert archive_name("given", source) == "given"


@pytest.mark.parametrize("source", ["模型", "___", "--", ""])
def test_no_name_can_be_made(source: str) -> None:
    with pytest.raises(BuildError, match="--name NAME"):
        archive_name(None, source)


def _snapshot(cache: Path) -> Path:
    """A model in the hub's cache, as the hub's library lays it out."""
    commit = "e4c5a1" * 6 + "abcd"
    repository = cache / "models--acme--router"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    make_checkpoint(repository / "snapshots" / commit, "bert")
    return repository / "snapshots" / commit


def test_a_snapshot_of_the_hubs_cache_has_its_models_name(tmp_path: Path) -> None:
    folder = _snapshot(tmp_path)
    checkpoint = load(SetupConfig(model_name=str(folder)))
    assert (checkpoint.source, checkpoint.revision) == ("acme/router", folder.name)
    assert archive_name(None, checkpoint.source) == "router"
    assert hub_name(tmp_path) is None


@pytest.mark.parametrize("reason", ["offline", "unreachable"])
def test_a_cached_model_is_found_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    folder = _snapshot(tmp_path)
    error = huggingface_hub.errors.OfflineModeIsEnabled if reason == "offline" else ConnectionError

    def refuse(*arguments: object, **keys: object) -> None:
        raise error("no hub")

    monkeypatch.setattr(huggingface_hub, "model_info", refuse)
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: download(*a, **{**k, "cache_dir": str(tmp_path)})
    )
    checkpoint = load(SetupConfig(model_name="acme/router"))
    assert (checkpoint.folder, checkpoint.source, checkpoint.revision) == (folder, "acme/router", folder.name)
    shutil.rmtree(tmp_path / "models--acme--router")
    with pytest.raises(BuildError, match="the hub's cache here does not have it"):
        load(SetupConfig(model_name="acme/router"))


def test_attempts_to_reach_the_hub_leave_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = huggingface_hub.utils.logging.get_logger("huggingface_hub.utils._http")

    def refuse(*arguments: object, **keys: object) -> None:
        logger.warning("Retrying in 8s [Retry 4/5].")
        raise ConnectionError("no hub")

    monkeypatch.setattr(huggingface_hub, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    assert main(["archive", "--model", "acme/router", "--device", "cpu"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("builder: 'acme/router' is neither a local folder nor a model the hub gives (no hub)")
    assert caplog.records == []
    logger.warning("again")
    assert len(caplog.records) == 1
