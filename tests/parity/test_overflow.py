"""A checkpoint whose values leave fp16's range: the first place is named, and the archive is built in a wider type."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from builder.archive import LibraryFile, build
from builder.checkpoint import load
from builder.gate.overflow import first_beyond
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from tests.checkpoints import make_checkpoint

PRODUCT = "bert.encoder.layer.1.output.dense.weight"


def _overflowing(folder: Path) -> Path:
    """Weights of the second layer's last product a million times as large: LayerNorm brings the values back."""
    make_checkpoint(folder, "bert", "sequence_classification")
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file({**state, PRODUCT: state[PRODUCT] * 1e6}, file, {"format": "pt"})
    return folder


def test_the_first_product_out_of_range_is_named(tmp_path: Path, cpu_library: Path) -> None:
    found = first_beyond(load(SetupConfig(model_name=str(_overflowing(tmp_path)))))
    assert found is not None
    assert found.where == "layer.1.output"
    assert found.magnitude > 65504
    assert "layer.1.output reaches" in found.line()


def test_an_ordinary_checkpoint_fits(tmp_path: Path, cpu_library: Path) -> None:
    assert first_beyond(load(SetupConfig(model_name=str(make_checkpoint(tmp_path, "roberta"))))) is None


def test_fp16_is_built_in_a_wider_type(tmp_path: Path, cpu_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _overflowing(tmp_path / "checkpoint")
    config = SetupConfig.model_validate({"model_name": str(folder), "name": "tiny", "data_type": "fp16"})
    libraries = [LibraryFile(cpu_library, "cpu", ["x86_64"])]
    archive, verdict = build(config, libraries, tmp_path / "store", lambda _: None)
    assert verdict.passed
    assert archive.exists()
    assert "layer.1.output reaches" in capsys.readouterr().err
    import zipfile

    with zipfile.ZipFile(archive) as packed:
        facts = ArchiveFacts.model_validate_json(packed.read("archive.json"))
    assert facts.compute == "bf16"
