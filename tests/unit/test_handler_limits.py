"""What a client may cost: windows, answers, time, and what the health of a model says of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handler.archive import ArchiveError
from handler.errors import RequestError
from handler.packing import Arrays
from handler.predictor import Predictor
from handler.tokenizer import Tokenized, Tokenizer
from handler.warm_up import warm_up
from tests.unit.handler_fakes import MAX_LENGTH, VOCABULARY, PooledLogits, TokenOutputs, predictor, save_archive
from tests.unit.handler_fakes import save_tokenizer as tokenizer_file


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_file(tmp_path / "tokenizer.json"), MAX_LENGTH, True, max_tokens=20 * MAX_LENGTH)


@pytest.mark.parametrize("question", [1, 5, 10, 15])
def test_windows_are_never_more_than_allowed(tokenizer: Tokenizer, question: int) -> None:
    counts = []
    for words in range(1, 400, 13):
        pair = ("who " * question, "cat " * words)
        (result,) = tokenizer.encode([pair], ["stride"], [MAX_LENGTH], offsets=True)
        if isinstance(result, Tokenized):
            counts.append(len(result.sequences))
        else:
            assert result.type == "too_large"
    assert 1 < max(counts) <= 20


def test_a_question_that_leaves_too_little_room_is_refused(tokenizer: Tokenizer) -> None:
    (result,) = tokenizer.encode([("who " * 20, "cat " * 30)], ["stride"], [4])
    assert isinstance(result, RequestError)
    assert (result.type, result.status) == ("too_long", 400)


def test_a_query_counts_once_for_each_text(tmp_path: Path) -> None:
    config = {"limits": {"max_characters": 100}}
    ranker = predictor(tmp_path, PooledLogits(1), "rerank", config)
    assert ranker({"query": "who " * 10, "texts": ["the cat"]})["results"]
    with pytest.raises(RequestError) as caught:
        ranker({"query": "who " * 10, "texts": ["the cat"] * 3})
    assert caught.value.type == "too_large"


def test_candidates_that_would_not_fit_an_answer_are_refused(tmp_path: Path) -> None:
    model = TokenOutputs(1, len(VOCABULARY))
    filler = predictor(tmp_path, model, "fill_mask", {"limits": {"max_characters": 1000}})
    assert len(filler({"text": "the [MASK]", "top_k": 50})["masks"][0]) == 50
    with pytest.raises(RequestError) as caught:
        filler({"text": "the [MASK] [MASK] [MASK]", "top_k": 50})
    assert (caught.value.type, caught.value.field) == ("too_large", "top_k")


def test_of_a_vocabulary_wide_output_only_the_masks_rows_are_kept(tmp_path: Path) -> None:
    filler = predictor(tmp_path, TokenOutputs(1, len(VOCABULARY)), "fill_mask")
    (job,) = filler.task.encode([filler.task.request.model_validate({"text": "the [MASK] sat on a mat"})])
    (output,) = filler._packer.run(job.sequences)
    assert output[0].shape == (1, len(VOCABULARY))
    assert output[0].base is None


def test_a_batch_ends_before_the_server_gives_the_worker_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"response_timeout": 1, "max_batch_tokens": MAX_LENGTH}
    slow = predictor(tmp_path, PooledLogits(2), "sequence_classification", config)
    model, calls = slow.model, []

    def run(ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        calls.append(len(ids))
        time.sleep(0.3)
        return model(ids, segments, mask)

    monkeypatch.setattr(slow._packer, "_model", run)
    replies = slow.predict([{"body": "cat " * 20} for _ in range(8)])
    assert [reply.status for reply in replies].count(503) == 8 - len(calls)
    assert len(calls) == 3


def test_an_internal_error_shows_in_the_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = predictor(tmp_path, PooledLogits(2), "sequence_classification")
    own.warm_up()
    assert gauge(own) == 1

    def fail(*_: Any) -> Arrays:
        raise ValueError

    monkeypatch.setattr(own._packer, "_model", fail)
    assert own.predict([{"body": "the cat"}])[0].status == 500
    assert gauge(own) == 0


def gauge(own: Predictor) -> float:
    return next(sample.value for sample in own.metrics._samples() if sample.name == "canary")


@pytest.mark.parametrize("task", ["rerank", "question_answering", "fill_mask"])
def test_the_smallest_limits_do_not_make_a_model_ill(tmp_path: Path, task: Any) -> None:
    models = {"rerank": PooledLogits(1), "question_answering": TokenOutputs(2)}
    model = models.get(task, TokenOutputs(1, len(VOCABULARY)))
    own = predictor(tmp_path, model, task, {"limits": {"max_inputs": 1}})
    assert own.canary.check()["healthy"]


def test_a_canary_that_is_refused_says_why(tmp_path: Path) -> None:
    config = {"limits": {"max_characters": 5}}
    own = predictor(tmp_path, PooledLogits(2), "sequence_classification", config)
    with pytest.raises(ArchiveError, match="too_large: more than 5 characters"):
        own.warm_up()


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    folder = save_archive(tmp_path / "archive", PooledLogits(2), "sequence_classification", {})
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ArchiveError, match=r"tokenizer.json cannot be read"):
        Predictor.load(folder)


def test_warm_up_leaves_out_what_memory_has_no_room_for() -> None:
    class Limited:
        device = torch.device("cpu")
        shapes: list[tuple[int, ...]] = []  # noqa: RUF012

        def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
            if ids.size > 128:
                raise MemoryError
            self.shapes.append(ids.shape)
            return ()

    model = Limited()
    warm_up(model, 0, 512, 32, 16384)
    assert set(model.shapes) == {(1, 16), (1, 128)}
