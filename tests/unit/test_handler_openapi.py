"""The committed interface is the one the schemas give."""

from __future__ import annotations

from pathlib import Path

import yaml

from handler.openapi import document, to_yaml

FILE = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"


def test_the_committed_file_is_in_step() -> None:
    assert FILE.read_text() == to_yaml(), "run: python -m handler.openapi > docs/openapi.yaml"


def test_every_reference_is_defined() -> None:
    schemas = document()["components"]["schemas"]
    references = {
        line.rpartition("/")[2].strip("'\"") for line in yaml.safe_dump(document()).splitlines() if "$ref" in line
    }
    assert references <= set(schemas)
    assert "QuestionAnswer" in references
