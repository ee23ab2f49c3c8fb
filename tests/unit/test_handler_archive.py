"""``archive.json``: what is required, what is ignored, and what a reader is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handler.archive import ArchiveError, ArchiveFacts

FACTS = {
    "format": 1,
    "name": "tiny",
    "task": "question_answering",
    "family": "bert",
    "mode": "thsext",
    "data_type": "bf16",
    "labels": [],
    "problem_type": None,
    "max_positions": 512,
    "uses_segments": True,
    "pad_id": 0,
    "mask_id": 103,
    "pooling": None,
    "normalize": False,
    "encoder": {"layers": 6, "hidden": 384, "embedding": 384, "intermediate": 1536, "heads": 12},
    "torch": {"built": "2.13.0", "oldest": "2.10"},
    "libraries": {"libefft_cpu.so": {"sha256": "ab", "device": "cpu", "targets": ["avx2"]}},
    "parity": {"error": 0.1},
    "checkpoint": {"name": "n", "revision": None, "sha256": "cd"},
}


def test_what_is_written_is_read_back_and_is_stable(tmp_path: Path) -> None:
    facts = ArchiveFacts.model_validate(FACTS)
    facts.save(tmp_path / "archive.json")
    first = (tmp_path / "archive.json").read_bytes()
    again = ArchiveFacts.load(tmp_path / "archive.json")
    again.save(tmp_path / "archive.json")
    assert again == facts
    assert (tmp_path / "archive.json").read_bytes() == first


def test_a_later_builders_keys_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "archive.json"
    path.write_text(json.dumps({**FACTS, "later": 1}))
    assert ArchiveFacts.load(path).model_extra == {"later": 1}


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"format": 3}, {"mode": ["ths"]}, {"task": "translation"}, {"encoder": {}}]
)
def test_an_archive_of_another_kind_is_refused_in_one_line(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "archive.json"
    path.write_text(json.dumps({**FACTS, **change}))
    with pytest.raises(ArchiveError, match=r"^archive.json: .*build the archive again$"):
        ArchiveFacts.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="archive.json is missing"):
        ArchiveFacts.load(tmp_path / "archive.json")
