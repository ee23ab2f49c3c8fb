"""Setup configs: the parent example's keys, unknown keys, contradictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handler.config import ConfigError, SetupConfig

PARENT = {
    "model_name": "bert-base-uncased",
    "mode": "sequence_classification",
    "do_lower_case": True,
    "num_labels": "0",
    "save_mode": "torchscript",
    "max_length": "150",
    "captum_explanation": True,
    "embedding_name": "bert",
    "FasterTransformer": True,
}


def written(folder: Path, data: object) -> Path:
    path = folder / "setup_config.json"
    path.write_text(json.dumps(data))
    return path


def test_parent_example_keys_work(tmp_path: Path) -> None:
    config = SetupConfig.load(written(tmp_path, PARENT))
    assert (config.kind, config.num_labels, config.max_length) == ("thsext", 0, 150)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"save_mode": "pretrained"}, "ori"),
        ({"save_mode": "pretrained", "FasterTransformer": False}, "ori"),
        ({"save_mode": "torchscript"}, "ths"),
        ({"save_mode": "torchscript", "FasterTransformer": False}, "ths"),
        ({"save_mode": "torchscript", "FasterTransformer": True}, "thsext"),
        ({"FasterTransformer": True}, "thsext"),
        ({}, "thsext"),
        ({"kind": "ori"}, "ori"),
    ],
)
def test_kind_follows_the_parent_keys(keys: dict, kind: str) -> None:
    assert SetupConfig.model_validate({"model_name": "m", **keys}).kind == kind


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_lenght": 128}, "unknown key 'max_lenght', did you mean 'max_length'"),
        ({"fastertransformer": True}, "did you mean 'FasterTransformer'"),
        ({"limits": {"max_input": 3}}, "limits: unknown key 'max_input', did you mean 'max_inputs'"),
        ({"mode": "translation"}, "mode: "),
        ({"max_length": "many"}, "max_length: "),
        ({"max_length": 0}, "max_length: "),
        ({"max_length": 64, "stride": 64}, "stride 64 must be smaller"),
        ({"save_mode": "pretrained"}, "FasterTransformer needs save_mode torchscript"),
        ({"model_parallel": True}, "model_parallel: "),
        ({"name": "../up"}, "name: "),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SetupConfig.load(written(tmp_path, {**PARENT, **changes}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("setup_config.json: ")


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"^broken.json: "):
        SetupConfig.load(path)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = SetupConfig.model_validate(PARENT)
    assert SetupConfig.load(written(tmp_path, config.model_dump(mode="json"))) == config
