"""Zero-shot, sparse, multi-vector and hybrid archives proven on a GPU, and one of several adapters answering there."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.archive import build
from handler.config import SetupConfig
from handler.predictor import Predictor
from tests.adapters import make_adapter
from tests.checkpoints import TEXTS, make_checkpoint
from tests.gpu.test_gate import _libraries
from tests.parity.test_outputs import CASES

NAMES = ("zero-shot", "SPLADE", "ColBERT, expanded", "BGE-M3")
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"compute": "bf16"},
    "fp16": {"compute": "fp16"},
    "int8": {"scheme": "int8"},
    "exported": {"format": "export", "compute": "fp16"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_an_archive_is_proven_on_both_devices(tmp_path: Path, name: str, kind: str) -> None:
    make, made, settings = CASES[name]
    folder = make(tmp_path / "model", **made)
    config = SetupConfig.model_validate({"model_name": str(folder), "name": "tiny", **settings, **KINDS[kind]})
    _, verdict = build(config, _libraries(), tmp_path / "store", lambda _: None)
    assert verdict.passed
    assert verdict.on_gpu is not None, "the CUDA library was not run"
    assert verdict.on_gpu["passed"]


@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_each_request_has_its_adapter(tmp_path: Path, compute: str) -> None:
    base = make_checkpoint(tmp_path / "base", "bert")
    merged = {name: make_adapter(base, tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))}
    adapters = {name: str(tmp_path / name) for name in merged}
    config = SetupConfig(model_name=str(base), name="both", adapters=adapters, compute=compute)
    archive, verdict = build(config, _libraries(), tmp_path / "store", lambda _: None)
    assert verdict.on_gpu is not None, "the CUDA library was not run"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "unpacked")
    predictor = Predictor.load(tmp_path / "unpacked", gpu=0)
    names = ["one", "two", "two", "one", "two"]
    for _ in range(3):  # step by step, captured, replayed
        answers = predictor([{"text": t, "adapter": n, "top_k": 9} for t, n in zip(TEXTS, names, strict=True)])
        for answer, text, name in zip(answers, TEXTS, names, strict=True):
            ids = predictor.task.tokenizer.encode([text], ["truncate"], [0])[0].sequences[0].ids
            with torch.inference_mode():
                expected = merged[name](input_ids=torch.tensor([ids])).logits.softmax(-1)[0].tolist()
            scores = {item["label"]: item["score"] for item in answer["labels"]}
            found = [scores[f"LABEL_{row}"] for row in range(len(scores))]
            assert found == pytest.approx(expected, abs=2e-5 if compute == "fp32" else 2e-2)
