"""Label names and problem types, read off configs of every shape that people save."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers

from builder.checkpoint import load
from builder.errors import BuildError
from handler.config import SetupConfig
from tests.unit.handler_fakes import VOCABULARY, save_tokenizer

SIZES = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.fixture(scope="module")
def classifier_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    config = transformers.BertConfig(**SIZES, vocab_size=len(VOCABULARY), max_position_embeddings=64, num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder / "tokenizer.json")
    return folder


@dataclass
class Read:
    """What a checkpoint said while its config was as the test wants it."""

    labels: list[str]
    remarks: list[str]
    problem_type: str | None


def edited(folder: Path, given: list[str] | None = None, **changes: Any) -> Read:
    """After changes to its config.json (None: without the key); ``given``: the setup config's labels."""
    path = folder / "config.json"
    before = path.read_text()
    stated = {**json.loads(before), **changes}
    try:
        path.write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))
        checkpoint = load(SetupConfig(model_name=str(folder), task="sequence_classification", labels=given))
        read = Read(checkpoint.labels, checkpoint.remarks, checkpoint.problem_type)
        checkpoint.load_model()
        return read
    finally:
        path.write_text(before)


def names(*given: Any) -> dict[str, Any]:
    return {str(row): name for row, name in enumerate(given)}


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"id2label": names("bad", "fair", "good")}, ["bad", "fair", "good"]),
        ({"id2label": {"2": "good", "0": "bad", "1": "fair"}}, ["bad", "fair", "good"]),
        ({"id2label": {"00": "bad", " 1 ": "fair", "2": "good"}}, ["bad", "fair", "good"]),
        ({"id2label": names(1, 2, 3)}, ["1", "2", "3"]),
        ({"id2label": names("other", "other", "good")}, ["other", "other", "good"]),
        ({"id2label": None, "num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ],
)
def test_names_by_rows(classifier_of_three: Path, changes: dict, labels: list[str]) -> None:
    assert edited(classifier_of_three, label2id=None, **changes).labels == labels


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id2label": {"1": "bad", "2": "fair", "3": "good"}}, "names the rows 1, 2, 3, but 3 rows are 0 to 2"),
        ({"id2label": {"0": "bad", "1": "fair", "5": "good"}}, "names the rows 0, 1, 5, but 3 rows"),
        ({"id2label": {"-1": "bad", "0": "fair", "1": "good"}}, "names the rows -1, 0, 1"),
        ({"id2label": names("bad", "good")}, "names 2 labels, the classifier has 3 rows"),
        ({"id2label": names(*"abcde")}, "names 5 labels, the classifier has 3 rows"),
        ({"id2label": {str(row): "x" for row in range(1, 30)}}, "names the rows 1, 2, 3, 4, 5, 6, 7, 8 ..., but 29"),
        ({"id2label": {}}, "is empty"),
        ({"id2label": names("a", None, "c")}, "gives row 1 no name"),
        ({"id2label": names("a", " ", "c")}, "gives row 1 no name"),
        ({"id2label": names("a", ["b"], "c")}, "gives row 1 no name"),
        ({"id2label": {"bad": "0", "fair": "1", "good": "2"}}, "has the key 'bad'"),
        ({"id2label": {"": "0", "1": "1", "2": "2"}}, "has the key ''"),
        ({"id2label": ["bad", "fair", "good"]}, "must be an object"),
        ({"id2label": "bad"}, "must be an object"),
    ],
)
def test_what_leaves_open_which_row_has_which_name_is_refused(
    classifier_of_three: Path, changes: dict, said: str
) -> None:
    with pytest.raises(BuildError) as caught:
        edited(classifier_of_three, label2id=None, **changes)
    assert said in str(caught.value)
    assert "id2label" in str(caught.value) or "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [{"1": "x", "2": "y", "3": "z"}, {"0": "x"}, names(*"abcde")])
def test_the_setup_configs_names_settle_it(classifier_of_three: Path, ids: dict) -> None:
    found = edited(classifier_of_three, given=["bad", "fair", "good"], id2label=ids, label2id=None)
    assert found.labels == ["bad", "fair", "good"]
    assert found.remarks == []
    with pytest.raises(BuildError, match="names 2 labels, the classifier has 3 rows"):
        edited(classifier_of_three, given=["bad", "good"], id2label=ids, label2id=None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label2id": {"a": 0, "b": 2, "c": 1}}, "label2id does not agree"),
        ({"label2id": {"LABEL_0": 0}}, "label2id does not agree"),
        ({"id2label": names("x", "x", "y"), "label2id": {"x": 1, "y": 2}}, "the same name"),
        ({"function_to_apply": "none"}, "function_to_apply 'none' is not read"),
        ({"problem_type": "ranking"}, "problem_type 'ranking' is unknown"),
        ({"id2label": {"0": "a"}, "num_labels": 3}, "id2label names 1 labels, num_labels is 3"),
    ],
)
def test_what_no_pipeline_reads_is_said(classifier_of_three: Path, changes: dict, said: str) -> None:
    given = {"id2label": names("a", "b", "c"), "label2id": None, **changes}
    remarks = edited(classifier_of_three, **given).remarks
    assert len(remarks) == 1, remarks
    assert said in remarks[0]


def test_a_config_that_agrees_with_itself_needs_no_remark(classifier_of_three: Path) -> None:
    found = edited(classifier_of_three, id2label=names("a", "b", "c"), label2id={"a": 0, "b": 1, "c": 2})
    assert found.remarks == []


@pytest.mark.parametrize(
    ("stated", "read"),
    [
        (None, None),
        ("ranking", None),
        ("regression", "regression"),
        ("multi_label_classification", "multi_label_classification"),
        ("single_label_classification", "single_label_classification"),
    ],
)
def test_problem_types(classifier_of_three: Path, stated: str | None, read: str | None) -> None:
    assert edited(classifier_of_three, problem_type=stated).problem_type == read
