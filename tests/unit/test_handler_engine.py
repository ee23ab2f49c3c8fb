"""The engine by itself: from an archive or a folder, typed answers and columns, an error for each item."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handler.archive import ArchiveError
from handler.config import ConfigError
from handler.engine import Engine
from handler.errors import RequestError
from handler.schemas import ClassificationAnswer, ClassificationRequest, QuestionRequest, TextRequest
from tests.unit.handler_fakes import MAX_LENGTH, PooledLogits, SeveralOutputs, TokenOutputs, save_archive

TEXT = "the cat sat on a mat"
LABELS = ["red", "green", "blue"]


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, file.relative_to(folder))
    return archive


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_archive(
        tmp_path_factory.mktemp("archive"), PooledLogits(3), "sequence_classification", {}, labels=LABELS
    )


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.open(folder, threads=torch.get_num_threads())


def test_an_adapter_of_an_archive_that_has_none_is_refused_alone(engine: Engine) -> None:
    first, second, third = engine.answer([TEXT, {"text": TEXT, "adapter": "tickets"}, TEXT])
    assert isinstance(second, RequestError)
    assert (second.type, second.field) == ("invalid_request", "adapter")
    assert second.message == "this archive has no such adapter; it has none to choose from"
    assert isinstance(first, ClassificationAnswer)
    assert first == third


def test_it_opens_an_archive_and_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    archive = pack(folder, tmp_path / "small.mar")
    with Engine.open(archive, device="cpu", threads=torch.get_num_threads()) as opened:
        assert list(scratch.iterdir())
        assert opened.answer([TEXT]) == engine.answer([TEXT])
    assert not list(scratch.iterdir())
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(ArchiveError, match=r"small\.mar"):
        Engine.open(archive)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "cuda:99"])
def test_a_device_that_is_none_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match="device") as caught:
        Engine.open(folder, device=device)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"none\.mar"):
        Engine.open(tmp_path / "none.mar")
    with pytest.raises(ArchiveError, match=r"archive\.json is missing"):
        Engine.open(tmp_path)


def test_answers_are_typed_and_errors_stand_in_their_places(engine: Engine) -> None:
    requests: list[Any] = [
        TEXT,
        {"text": TEXT, "top_k": 2},
        ClassificationRequest(text=TEXT, text_pair="a red mat"),
        {"text": " "},
        ClassificationRequest(text="\t"),
        QuestionRequest(question="who", context="the cat"),
        {"text": TEXT, "colour": "red"},
        5,
        None,
        RequestError("empty", "null", "text"),
        {"text": TEXT * 20, "truncation": "error"},
    ]
    answers = engine.answer(requests)
    assert all(isinstance(answer, ClassificationAnswer) for answer in answers[:3])
    assert answers[0].label in LABELS
    assert answers[1].labels[0].label == answers[0].label
    types = [answer.type for answer in answers[3:]]
    assert types == ["empty", "empty", *["invalid_request"] * 4, "empty", "too_long"]


def test_an_answer_does_not_depend_on_its_company(engine: Engine) -> None:
    texts = [TEXT, "who", "where is the red mat", TEXT * 3, "on a blue mat the cat sat"]
    together = engine.answer(texts)
    alone = [engine.answer([text])[0] for text in texts]
    assert [a.label for a in together] == [a.label for a in alone]
    assert [a.score for a in together] == pytest.approx([a.score for a in alone], rel=1e-6)


def test_columns_hold_what_the_answers_do(engine: Engine) -> None:
    requests = [TEXT, {"text": ""}, {"text": TEXT * 10, "top_k": 3}]
    answers, columns = engine.answer(requests), engine.columns(requests)
    assert set(columns) == {*ClassificationAnswer.model_fields, "error"}
    assert columns["label"].tolist() == [answers[0].label, None, answers[2].label]
    assert columns["score"][0] == answers[0].score
    assert np.isnan(columns["score"][1])
    assert columns["dropped_tokens"].tolist() == [0, 0, answers[2].dropped_tokens]
    assert answers[2].dropped_tokens > 0
    assert columns["labels"][0] is None
    assert len(columns["labels"][2]) == 3
    assert [error.type if error else None for error in columns["error"]] == [None, "empty", None]


def test_no_rows_are_columns_too(engine: Engine) -> None:
    assert engine.answer([]) == []
    assert all(len(column) == 0 for column in engine.columns([]).values())


@pytest.mark.parametrize(
    ("task", "module", "request_", "name"),
    [
        ("question_answering", TokenOutputs(2), {"question": "who", "context": TEXT}, "answer"),
        ("token_classification", TokenOutputs(1, 3), {"text": TEXT}, "entities"),
        ("embedding", PooledLogits(4), {"text": TEXT}, "embedding"),
        ("rerank", PooledLogits(1), {"query": "who", "texts": [TEXT, "a mat"]}, "results"),
        ("fill_mask", TokenOutputs(1, 77), {"text": "the [MASK] sat"}, "masks"),
        ("zero_shot_classification", PooledLogits(3), {"text": TEXT, "candidate_labels": ["a", "b"]}, "scores"),
        ("sparse_embedding", PooledLogits(77), {"text": TEXT, "top_k": 3}, "sparse_embedding"),
        ("multi_vector_embedding", TokenOutputs(1, 4), {"text": TEXT}, "token_embeddings"),
        ("multi_vector_embedding", TokenOutputs(1, 4), {"query": "who", "texts": [TEXT, "a mat"]}, "results"),
        ("hybrid_embedding", SeveralOutputs(4), {"text": TEXT, "outputs": ["sparse"]}, "sparse_embedding"),
    ],
)
def test_every_task_has_columns(task: str, module: Any, request_: Any, name: str, tmp_path: Path) -> None:
    engine = Engine.open(save_archive(tmp_path, module, task, {"stride": 4}), threads=torch.get_num_threads())
    good, bad, again = engine.answer([request_, {}, request_])
    columns = engine.columns([request_, {}, request_])
    assert good == again
    assert isinstance(bad, RequestError)
    assert all(len(column) == 3 for column in columns.values())
    if name == "embedding":
        assert columns[name].dtype == np.float32
        assert columns[name][0].tolist() == pytest.approx(good.embedding, rel=1e-6)
        assert np.isnan(columns[name][1]).all()
    else:
        expected = good.model_dump(exclude_unset=True)[name]
        assert columns[name][0] == expected
        assert columns[name][1] is None


def test_a_deadline_that_has_passed_leaves_errors(engine: Engine) -> None:
    (answer,) = engine.answer([TEXT], deadline=time.monotonic() - 1)
    assert answer.type == "overloaded"


def test_texts_of_another_task_are_refused(engine: Engine) -> None:
    (answer,) = engine.answer([TextRequest(text=TEXT)])
    assert answer.type == "invalid_request"
    assert "ClassificationRequest" in answer.message


def test_long_texts_are_cut_as_the_server_cuts_them(engine: Engine) -> None:
    (answer,) = engine.answer([TEXT * 50])
    assert answer.dropped_tokens > 0
    assert engine.task.tokenizer.max_length == MAX_LENGTH
