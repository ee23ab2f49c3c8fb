"""The gate on a machine with a GPU: the CUDA library that an archive carries is proven there, in a fresh process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from builder.archive import LibraryFile, build
from builder.compile import CUDA_TARGETS, compile_cpu, compile_cuda
from builder.errors import BuildError
from builder.gate import parity
from handler.config import SetupConfig
from tests import newer_families as newer
from tests.checkpoints import FAMILIES, NEWER, make_checkpoint


def _libraries() -> list[LibraryFile]:
    cpu, cuda = os.environ.get("EFFT_CPU_LIBRARY"), os.environ.get("EFFT_CUDA_LIBRARY")
    return [
        LibraryFile(Path(cpu) if cpu else compile_cpu(), "cpu", ["x86_64"]),
        LibraryFile(Path(cuda) if cuda else compile_cuda(CUDA_TARGETS), "cuda", CUDA_TARGETS),
    ]


def _config(folder: Path, data_type: str) -> SetupConfig:
    return SetupConfig.model_validate({"model_name": str(folder), "name": "tiny", "data_type": data_type})


@pytest.mark.parametrize("data_type", ["fp32", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_libraries_are_proven(tmp_path: Path, family: str, data_type: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", family)
    _, verdict = build(_config(folder, data_type), _libraries(), tmp_path / "store", lambda _: None)
    assert verdict.passed
    assert verdict.on_gpu is not None, "the CUDA library was not run"
    assert verdict.on_gpu["device"].startswith("cuda")
    assert verdict.on_gpu["passed"]


@pytest.mark.parametrize("data_type", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", NEWER)
def test_newer_families_are_proven(tmp_path: Path, family: str, data_type: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", family, newer.HEADS[family][0])
    _, verdict = build(_config(folder, data_type), _libraries(), tmp_path / "store", lambda _: None)
    assert verdict.passed
    assert verdict.on_gpu is not None, "the CUDA library was not run"
    assert verdict.on_gpu["passed"]


def test_a_wrong_answer_on_the_gpu_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "bert")
    compare = parity.compare

    def wrong(checkpoint, candidate, data_type, pooling, device="cpu"):
        def off(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(output * (1.01 if device != "cpu" else 1.0) for output in candidate(*inputs))

        return compare(checkpoint, off, data_type, pooling, device)

    monkeypatch.setattr(parity, "compare", wrong)
    monkeypatch.setattr("builder.archive.prove", lambda stage, config, calibrate=None: _judged(stage, config))
    with pytest.raises(BuildError, match="parity FAILED on cuda"):
        build(_config(folder, "fp32"), _libraries(), tmp_path / "store", lambda _: None)


def _judged(stage: Path, config: SetupConfig) -> parity.Verdict:
    verdict = parity.judge_stage(stage, config)
    if not verdict.passed:
        raise BuildError(verdict.line())
    assert isinstance(verdict, parity.Verdict)
    return verdict
