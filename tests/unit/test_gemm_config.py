"""gemm_config.json: used where it was measured, ignored with a warning elsewhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from handler import gemm_config

HERE = {"device": "chip", "driver": "13000", "cublaslt": "130100"}
PLAN = {column: index for index, column in enumerate(gemm_config.COLUMNS)} | {"type": "fp16"}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    rows: list[list[int]] = []

    class Operators:
        @staticmethod
        def use_plans(plans):
            rows.extend(plans.tolist())
            return len(plans)

    monkeypatch.setattr(gemm_config, "environment", lambda: HERE)
    monkeypatch.setattr(gemm_config.torch.ops, "efft", Operators, raising=False)
    return rows


def _write(folder: Path, **changes: object) -> None:
    config = {"environment": HERE, "plans": [PLAN], **changes}
    (folder / gemm_config.NAME).write_text(json.dumps(config))


def test_plans_of_this_device_are_used(tmp_path: Path, taken: list[list[int]]) -> None:
    _write(tmp_path)
    assert gemm_config.use(tmp_path) == 1
    assert taken == [[1, *range(1, 15)]]


def test_an_archive_without_a_config(tmp_path: Path, taken: list[list[int]]) -> None:
    assert gemm_config.use(tmp_path) == 0
    assert not taken


@pytest.mark.parametrize("key", HERE)
def test_plans_of_another_device_are_ignored_with_a_warning(tmp_path, taken, caplog, key) -> None:
    _write(tmp_path, environment={**HERE, key: "other"})
    with caplog.at_level(logging.WARNING):
        assert gemm_config.use(tmp_path) == 0
    assert not taken
    assert f"{key} other -> {HERE[key]}" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"plans": []}', '{"environment": {}, "plans": [{"type": "int4"}]}'])
def test_an_unreadable_config_is_ignored_with_a_warning(tmp_path, taken, caplog, text) -> None:
    (tmp_path / gemm_config.NAME).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert gemm_config.use(tmp_path) == 0
    assert not taken
    assert "not readable" in caplog.text
