"""Loading: what is missing or does not fit is said in one line; the doctor sees the same."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from builder.compile import ROOT
from handler.archive import ArchiveError, LibraryFacts
from handler.config import SetupConfig
from handler.doctor import main as doctor
from handler.predictor import Predictor
from handler.runtime import check_torch, fits, load_model, pick_device
from tests.unit.handler_fakes import PooledLogits, TokenOutputs, facts, save_archive

CONFIG = SetupConfig(model_name="fake")


@pytest.mark.parametrize(
    ("capability", "targets", "runs"),
    [
        ((9, 0), ["90a"], True),
        ((10, 0), ["90a"], False),
        ((8, 0), ["80", "86", "89", "90a"], True),
        ((8, 7), ["80", "86"], True),
        ((8, 0), ["86"], False),
        ((7, 5), ["80", "90a"], False),
        ((12, 0), ["80", "89", "90a"], True),
        ((9, 0), [], False),
    ],
)
def test_which_chips_a_library_fits(capability: tuple[int, int], targets: list[str], runs: bool) -> None:
    assert fits(capability, targets) is runs


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))


def test_another_chip_falls_back_to_the_cpu_or_is_refused(turing: None) -> None:
    own = facts(
        "embedding",
        encoder="fused",
        libraries={"libefft_cuda.so": LibraryFacts(sha256="", device="cuda", targets=["90a"])},
    )
    assert pick_device(own, CONFIG, 0) == torch.device("cpu")
    with pytest.raises(ArchiveError, match=r"compute capability 7.5 \(it has: 90a\)"):
        pick_device(own, CONFIG.model_copy(update={"cpu_fallback": False}), 0)
    assert pick_device(facts("embedding"), CONFIG, 0) == torch.device("cuda", 0)
    assert pick_device(facts("embedding"), CONFIG, None) == torch.device("cpu")


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_an_8_bit_archive_without_a_gpu_s_library_is_served_on_the_cpu_and_says_so(
    turing: None, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    own = facts("embedding", encoder="fused", compute="bf16", scheme=scheme)
    assert pick_device(own, CONFIG, 0) == torch.device("cpu")
    assert "the archive has no library for compute capability 7.5" in caplog.text
    with pytest.raises(ArchiveError, match="build it again with that target, or set cpu_fallback"):
        pick_device(own, CONFIG.model_copy(update={"cpu_fallback": False}), 0)


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_torch("2.10")
    with pytest.raises(ArchiveError, match="too old for this archive; install torch 99.1 or newer"):
        check_torch("99.1")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu130")
    with pytest.raises(
        ArchiveError, match=r"torch 2.9.1\+cu130 is too old for this archive; install torch 2.10 or newer"
    ):
        check_torch("2.0")
    out = io.StringIO()
    assert doctor(["any.mar"], out) == 1
    assert out.getvalue().startswith("not servable: torch 2.9.1+cu130 is too old")


@pytest.mark.parametrize("missing", ["model.pt", "archive.json", "tokenizer.json"])
def test_a_missing_file_is_named_by_worker_and_doctor(tmp_path: Path, missing: str) -> None:
    save_archive(tmp_path, PooledLogits(2), "sequence_classification", {})
    (tmp_path / missing).unlink()
    with pytest.raises(ArchiveError, match=f"{missing} is missing from the archive"):
        Predictor.load(tmp_path)
    shutil.copytree(ROOT / "handler", tmp_path / "handler", ignore=shutil.ignore_patterns("__pycache__"))
    out = io.StringIO()
    assert doctor([str(tmp_path)], out) == 1
    assert out.getvalue().splitlines()[-1].startswith(f"not servable: {missing} is missing")


def test_a_library_that_is_missing_damaged_or_foreign_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests may have loaded the real library into this process.
    monkeypatch.setattr("handler.runtime._loaded", {})
    monkeypatch.setattr("handler.runtime._loaded_elsewhere", lambda name: None)
    path = tmp_path / "libefft_cpu.so"
    own = facts("embedding", encoder="fused", libraries={path.name: LibraryFacts(sha256="0", device="cpu")})
    with pytest.raises(ArchiveError, match="libefft_cpu.so is missing"):
        load_model(tmp_path, own, CONFIG)
    path.write_bytes(b"no library")
    with pytest.raises(ArchiveError, match="not the file the archive was built with"):
        load_model(tmp_path, own, CONFIG)
    digest = hashlib.sha256(b"no library").hexdigest()
    own = facts("embedding", encoder="fused", libraries={path.name: LibraryFacts(sha256=digest, device="cpu")})
    with pytest.raises(ArchiveError, match="does not load"):
        load_model(tmp_path, own, CONFIG)


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    save_archive(tmp_path, PooledLogits(2), "sequence_classification", {})
    (tmp_path / "model.pt").write_bytes(b"no model")
    with pytest.raises(ArchiveError, match=r"^model.pt does not load in torch"):
        Predictor.load(tmp_path)


def test_a_model_that_cannot_answer_the_canary_is_refused(tmp_path: Path) -> None:
    save_archive(tmp_path, TokenOutputs(1), "question_answering", {"warm_up": True})
    with pytest.raises(ArchiveError, match="does not answer a known request"):
        Predictor.load(tmp_path)


class Failing(torch.nn.Module):
    """Runs on texts of seven tokens alone."""

    def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return ((ids + torch.ones(7)).sum(1, keepdim=True),)


def test_a_model_that_fails_on_its_device_says_so_in_one_line(tmp_path: Path) -> None:
    save_archive(tmp_path, Failing(), "sequence_classification", {"warm_up": True})
    with pytest.raises(ArchiveError, match=r"^the model does not run on cpu \(.*size.*\); build it again$"):
        Predictor.load(tmp_path)


def test_a_loaded_archive_answers_and_describes_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_archive(tmp_path, PooledLogits(2), "sequence_classification", {"max_length": 16, "stride": 2})
    with caplog.at_level("INFO"):
        predictor = Predictor.load(tmp_path)
    assert "runs on cpu in fp32 with torch alone" in caplog.text
    assert predictor("the cat")["label"] in ("LABEL_0", "LABEL_1")
    described = predictor.describe()
    assert described["canary"]["healthy"]
    assert described["max_length"] == 16
    assert described["totals"]["tokens"] > 0
    json.dumps(described)


def test_a_changed_answer_is_seen_by_the_canary(tmp_path: Path) -> None:
    save_archive(tmp_path, PooledLogits(2), "sequence_classification", {})
    predictor = Predictor.load(tmp_path)
    predictor._packer._model = lambda ids, segments, mask: (-3 * predictor.model(ids, segments, mask)[0],)  # type: ignore[assignment]
    assert not predictor.describe()["canary"]["healthy"]


def test_the_doctor_predicts_from_a_packed_archive(tmp_path: Path) -> None:
    folder = save_archive(tmp_path / "files", TokenOutputs(2), "question_answering", {"stride": 4})
    shutil.copytree(ROOT / "handler", folder / "handler", ignore=shutil.ignore_patterns("__pycache__"))
    packed = tmp_path / "fake.mar"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    out = io.StringIO()
    assert doctor([str(packed)], out) == 0
    assert "question_answering" in out.getvalue()
    assert out.getvalue().endswith("servable\n")
    assert doctor([str(tmp_path / "absent.mar")], out) == 1
