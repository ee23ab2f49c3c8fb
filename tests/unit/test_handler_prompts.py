"""Prompts, cut embeddings and rerank scores, on fakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handler.errors import RequestError
from handler.packing import collate
from handler.predictor import Predictor
from handler.tokenizer import Sequence, Tokenizer
from tests.unit.handler_fakes import MAX_LENGTH, PooledLogits, predictor, save_tokenizer

PROMPTS = {"query": "who is ", "document": "", "passage": "a mat ", "odd": "red red red "}


def embedder(folder: Path, **changes: Any) -> Predictor:
    return predictor(folder, PooledLogits(8), "embedding", prompts=PROMPTS, pooling="mean", **changes)


def ranker(folder: Path, **changes: Any) -> Predictor:
    return predictor(folder, PooledLogits(1), "rerank", prompts=PROMPTS, **changes)


def vector(predictor: Predictor, text: str = "the cat", **options: Any) -> list[float]:
    return predictor({"text": text, **options})["embedding"]


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, "a mat "),
        ({"prompt_name": "query"}, "who is "),
        ({"input_type": "query"}, "who is "),
        ({"input_type": "document"}, ""),  # of the names it looks for the first there is, empty or not
        ({"prompt_name": "odd", "input_type": "query"}, "red red red "),
        ({"prompt": "blue ", "prompt_name": "odd"}, "blue "),
        ({"prompt": ""}, ""),
    ],
)
def test_which_prompt_an_embedding_takes(tmp_path: Path, options: dict[str, str], prompt: str) -> None:
    served = embedder(tmp_path, default_prompt_name="passage")
    assert vector(served, **options) == vector(served, f"{prompt}the cat", prompt="")


def test_a_rerank_prompt_stands_before_the_query(tmp_path: Path) -> None:
    served = ranker(tmp_path, default_prompt_name="query")
    request = {"query": "the cat", "texts": ["on a mat", "sat"], "sort": False}
    assert served(request) == served({**request, "query": "who is the cat", "prompt": ""})
    assert served({**request, "prompt_name": "odd"}) == served({**request, "prompt": "red red red "})


def test_an_unknown_prompt_is_one_inputs_error(tmp_path: Path) -> None:
    for served, request in (
        (embedder(tmp_path), {"text": "the cat"}),
        (ranker(tmp_path), {"query": "the cat", "texts": ["sat"]}),
    ):
        right, wrong = served([request, {**request, "prompt_name": "secret words"}])
        assert right == served(request)
        message = "the model has no prompt of this name; it has: query, document, passage, odd"
        assert wrong == {"error": {"type": "invalid_request", "message": message, "field": "prompt_name"}}
    with pytest.raises(RequestError, match="it has: none"):
        predictor(tmp_path, PooledLogits(8), "embedding")({"text": "the cat", "prompt_name": "query"})


def test_an_input_type_asks_nothing_of_a_model_without_prompts(tmp_path: Path) -> None:
    served = predictor(tmp_path, PooledLogits(8), "embedding")
    assert vector(served, input_type="query") == vector(served)


@pytest.mark.parametrize("text", ["who is", "who is ", "[CLS] a", "zyx"])
def test_a_prompts_tokens_are_counted_without_the_last_special_one(tmp_path: Path, text: str) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path / "tokenizer.json"), MAX_LENGTH, True)
    assert tokenizer.prompt_length(text) == len(tokenizer.backend.encode(text).ids) - 1


def test_prompts_that_pooling_leaves_out_are_marked_in_the_mask(tmp_path: Path) -> None:
    served = embedder(tmp_path, include_prompt=False)
    masks: list[np.ndarray] = []
    run = served.model

    def watched(ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Any:
        masks.append(mask)
        return run(ids, segments, mask)

    watched.device = run.device  # type: ignore[attr-defined]
    served._packer._model = watched
    served([{"text": "the cat sat", "prompt_name": "query"}, {"text": "the cat"}])
    assert masks[0].tolist() == [[2, 2, 2, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]
    served.task.tokenizer.backend.post_processor = None
    with pytest.raises(RequestError, match="the prompt leaves no room") as error:
        served({"text": "the cat", "prompt": "cat " * 60})
    assert (error.value.type, error.value.field) == ("too_long", "prompt")


def test_a_mask_marks_prompts_only_where_told() -> None:
    _, _, mask = collate([Sequence([5, 6, 7], prompt=2), Sequence([5, 6])], 0)
    assert mask.tolist() == [[2, 2, 1], [1, 1, 0]]


@pytest.mark.parametrize("cut_first", [True, False])
def test_which_comes_first_the_cut_or_the_length_of_one(tmp_path: Path, cut_first: bool) -> None:
    served = embedder(tmp_path, normalize=True, cut_first=cut_first, dimensions=3)
    raw = np.array(vector(served, normalize=False, dimensions=8))
    first = raw[:3] / np.linalg.norm(raw[:3] if cut_first else raw)
    assert vector(served) == pytest.approx(first.tolist(), rel=1e-5)
    assert np.linalg.norm(vector(served, normalize=True)) == pytest.approx(1)
    assert len(vector(served, dimensions=5)) == 5


@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh", None])
def test_a_logit_becomes_a_score_by_the_models_activation(tmp_path: Path, activation: str | None) -> None:
    served = ranker(tmp_path, activation=activation)
    request = {"query": "the cat", "texts": ["on a mat", "sat", "is red"], "sort": False}
    logits = [result["score"] for result in served({**request, "raw_scores": True})["results"]]
    expected = {
        "identity": logits,
        "sigmoid": (1 / (1 + np.exp(-np.array(logits)))).tolist(),
        "tanh": np.tanh(logits).tolist(),
    }
    results = served(request)["results"]
    assert [result["score"] for result in results] == pytest.approx(expected[activation or "sigmoid"], rel=1e-5)
    assert min(logits) < 0 < max(logits) or len(set(logits)) == 3


def test_texts_come_back_where_they_are_asked_for(tmp_path: Path) -> None:
    texts = ["on a mat", "sat", "is red"]
    results = ranker(tmp_path)({"query": "the cat", "texts": texts, "return_text": True})["results"]
    assert [result["text"] for result in results] == [texts[result["index"]] for result in results]
