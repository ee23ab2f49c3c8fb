"""Models that 0.1.0 built answer as they did.

``archives_0_1`` holds what 0.1.0 wrote for four random checkpoints of two layers: model.pt and archive.json, and the
answers of its own library. They call ``efft::encoder`` and ``efft::prepare``, which only such archives do.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from handler.archive import ArchiveFacts
from handler.formats import load_module

FOLDERS = sorted((Path(__file__).parent / "archives_0_1").iterdir())
TOLERANCE = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06}
"""Of the largest output; another processor than the one they were written on rounds otherwise."""

pytestmark = pytest.mark.usefixtures("cpu_library")


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_an_archive_of_0_1_answers_as_it_did(folder: Path) -> None:
    facts = ArchiveFacts.load(folder / "archive.json")
    assert not facts.encoder_spec
    given = json.loads((folder / "answers.json").read_text())
    ids, mask = torch.tensor(given["ids"]), torch.tensor(given["mask"])
    module = load_module(folder, facts, torch.device("cpu"))
    assert module.encoder.matrices.dtype == torch.uint8, "the weights were not prepared"
    for answer, expected in zip(module(ids, torch.zeros_like(ids), mask), given["outputs"], strict=True):
        largest = torch.tensor(expected).abs().max().item()
        torch.testing.assert_close(
            answer.float(), torch.tensor(expected), rtol=0, atol=TOLERANCE[facts.data_type] * largest
        )
