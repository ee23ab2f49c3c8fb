"""Classifiers' scores beside transformers' pipeline, from the config to the answer, for heads of every shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from builder.archive import LibraryFile, write_files
from builder.checkpoint import load
from handler.config import SetupConfig
from handler.predictor import Predictor
from tests.checkpoints import make_checkpoint

TEXTS = ["the parcel has not arrived", "Where is my order number 4711?", "a"]
PAIR = {"text": "the parcel", "text_pair": "has not arrived"}
TOLERANCE = 1e-4
SHAPES = [
    (1, None), (1, "regression"), (1, "multi_label_classification"), (2, None), (2, "single_label_classification"),
    (3, "multi_label_classification"), (3, "regression"),
]  # fmt: skip


def checkpoint(folder: Path, labels: int, problem: str | None, **config: Any) -> Path:
    make_checkpoint(folder, "bert", num_labels=labels)
    path = folder / "config.json"
    stated = json.loads(path.read_text())
    stated["id2label"] = {str(row): f"name {row}" for row in range(labels)}
    stated["label2id"] = {name: int(row) for row, name in stated["id2label"].items()}
    path.write_text(json.dumps({**stated, "problem_type": problem, **config}))
    return folder


@pytest.fixture(scope="module")
def served(cpu_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Predictor]:
    def make(model: Path, **settings: Any) -> Predictor:
        stage = tmp_path_factory.mktemp("stage")
        given = {"model_name": str(model), "task": "sequence_classification", "warm_up": False, **settings}
        config = SetupConfig.model_validate(given)
        write_files(stage, "heads", config, load(config), [LibraryFile(cpu_library, "cpu", [])], lambda _: None)
        return Predictor.load(stage)

    return make


def by_label(answer: dict[str, Any]) -> dict[str, float]:
    listed = answer.get("labels", [answer])
    return {label["label"]: label["score"] for label in listed}


@pytest.mark.parametrize(("labels", "problem"), SHAPES)
def test_scores_are_the_pipelines(
    served: Callable[..., Predictor], tmp_path: Path, labels: int, problem: str | None
) -> None:
    model = checkpoint(tmp_path / "model", labels, problem)
    own, theirs = served(model), transformers.pipeline("text-classification", str(model))
    for function in (None, "sigmoid", "softmax", "none"):
        asked = {} if function is None else {"function_to_apply": function}
        for inputs in (*({"text": text} for text in TEXTS), PAIR):
            expected = {row["label"]: row["score"] for row in theirs(inputs, top_k=None, **asked)}
            answer = own({**inputs, **asked, "top_k": 10})
            assert by_label(answer) == pytest.approx(expected, abs=TOLERANCE)
            best = theirs(inputs, **asked)
            best = best[0] if isinstance(best, list) else best
            assert (answer["label"], answer["score"]) == (best["label"], pytest.approx(best["score"], abs=TOLERANCE))


def test_a_function_in_the_checkpoints_config_is_read_as_the_pipeline_reads_it(
    served: Callable[..., Predictor], tmp_path: Path
) -> None:
    """Not at all, where the problem type or the number of labels decides; the setup config's own is applied."""
    model = checkpoint(tmp_path / "model", 3, None, function_to_apply="none")
    theirs = transformers.pipeline("text-classification", str(model))
    for settings, asked in (({}, {}), ({"function_to_apply": "none"}, {"function_to_apply": "none"})):
        own = served(model, **settings)
        expected = {row["label"]: row["score"] for row in theirs(TEXTS[0], top_k=None, **asked)}
        assert by_label(own({"text": TEXTS[0], "top_k": 3})) == pytest.approx(expected, abs=TOLERANCE)
