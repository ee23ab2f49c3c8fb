"""Token classification, embedding, rerank and fill-mask on fakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handler.errors import RequestError
from handler.predictor import Predictor
from handler.tasks.token_classification import Found, Piece, grouped, joined, without_overlaps, words
from tests.unit.handler_fakes import MAX_LENGTH, VOCABULARY, WORDS, PooledLogits, TokenOutputs, predictor

LABELS = ["O", "B-PER", "I-PER", "B-LOC"]
LONG = " ".join(WORDS * 4)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder: Path = tmp_path_factory.mktemp("tagger")
    return predictor(folder, TokenOutputs(1, len(LABELS)), "token_classification", labels=LABELS)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("embedder"), PooledLogits(8), "embedding", pooling="mean")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("ranker"), PooledLogits(1), "rerank")


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("filler"), TokenOutputs(1, len(VOCABULARY)), "fill_mask")


@pytest.mark.parametrize("how", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("text", ["the cats sat, singing", LONG, "who is it 🙂 中文 e\u0301\r\n the end"])
def test_entities_are_cut_out_of_the_text(tagger: Predictor, how: str, text: str) -> None:
    entities = tagger({"text": text, "aggregation": how})["entities"]
    assert all(text[entity["start"] : entity["end"]] == entity["word"] != "" for entity in entities)
    assert [e["start"] for e in entities] == sorted(e["start"] for e in entities)
    assert all(("index" in entity) == (how == "none") for entity in entities)
    labels = {"B-PER", "I-PER", "B-LOC"} if how == "none" else {"PER", "LOC"}
    assert {entity["label"] for entity in entities} <= labels


def test_words_take_their_tokens_together(tagger: Predictor) -> None:
    text = "cats mats singing"
    spans = {(entity["start"], entity["end"]) for entity in tagger({"text": text, "aggregation": "first"})["entities"]}
    assert spans <= {(0, 4), (5, 9), (10, 17), (0, 9), (5, 17), (0, 17)}


def test_how_a_words_label_is_chosen() -> None:
    tokens = [np.array([0.6, 0.4]), np.array([0.1, 0.9]), np.array([0.7, 0.3])]
    pieces = [Piece(i, i + 1, scores, i, continues=i > 0) for i, scores in enumerate(tokens)]
    (word,) = words(pieces)
    assert joined(word, "first").scores.tolist() == [0.6, 0.4]
    assert joined(word, "max").scores.tolist() == [0.1, 0.9]
    assert joined(word, "average").scores == pytest.approx([1.4 / 3, 1.6 / 3])
    assert (joined(word, "max").start, joined(word, "max").end) == (0, 3)


def test_a_b_label_begins_an_entity() -> None:
    labels = ["B-PER", "I-PER", "B-PER", "I-LOC", "O"]
    found = [Found(label, 0.5 + i / 10, i, i + 1) for i, label in enumerate(labels)]
    assert [(e.label, e.start, e.end) for e in grouped(found)] == [
        ("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4), ("O", 4, 5),
    ]  # fmt: skip
    assert next(grouped(found)).score == pytest.approx(0.55)


def test_of_overlapping_entities_the_longer_then_the_surer_stays() -> None:
    found = [Found("A", 0.9, 0, 3), Found("B", 0.1, 1, 6), Found("C", 0.5, 8, 9), Found("D", 0.6, 8, 9)]
    assert [entity.label for entity in without_overlaps(found)] == ["B", "D"]


def test_embeddings(embedder: Predictor) -> None:
    raw = np.array(embedder("the cat")["embedding"])
    unit = np.array(embedder({"text": "the cat", "normalize": True})["embedding"])
    assert np.linalg.norm(unit) == pytest.approx(1)
    assert unit * np.linalg.norm(raw) == pytest.approx(raw, rel=1e-5)
    first = np.array(embedder({"text": "the cat", "dimensions": 3, "normalize": True})["embedding"])
    assert first == pytest.approx(raw[:3] / np.linalg.norm(raw[:3]), rel=1e-5)
    with pytest.raises(RequestError, match="8 dimensions"):
        embedder({"text": "the cat", "dimensions": 9})


def of_windows(predictor: Predictor, text: str, query: str | None = None) -> list[tuple[int, np.ndarray]]:
    """Length and output of each window, cut here by hand and run through the model one by one."""
    backend = predictor.task.tokenizer.backend
    first, last = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]
    head = [first] if query is None else [first, *backend.encode(query, add_special_tokens=False).ids, last]
    ids = backend.encode(text, add_special_tokens=False).ids
    room = MAX_LENGTH - len(head) - 1
    found = []
    for start in range(0, len(ids), room - predictor.config.stride):
        window = [*head, *ids[start : start + room], last]
        segments = np.array([[0] * len(head) + [int(query is not None)] * (len(window) - len(head))])
        (output,) = predictor.model(np.array([window]), segments, np.ones_like(segments))
        found.append((len(window), output[0]))
        if start + room >= len(ids):
            return found
    raise AssertionError("the text is empty")


def test_windows_of_an_embedding_are_averaged_by_tokens(embedder: Predictor) -> None:
    lengths, vectors = zip(*of_windows(embedder, LONG), strict=True)
    whole = embedder({"text": LONG, "truncation": "stride"})
    assert whole == {"embedding": pytest.approx(np.average(vectors, axis=0, weights=lengths), abs=1e-5)}
    assert len(set(lengths)) > 1
    cut = embedder({"text": LONG, "truncation": "truncate"})
    assert cut["embedding"] == pytest.approx(vectors[0], abs=1e-5)
    assert cut["dropped_tokens"] == len(LONG.split()) + 2 - MAX_LENGTH


def test_windows_of_a_text_vote_by_the_mean_of_their_logits(classifier: Predictor) -> None:
    logits = np.mean([output for _, output in of_windows(classifier, LONG)], axis=0)
    expected = np.exp(logits) / np.exp(logits).sum()
    answer = classifier({"text": LONG, "truncation": "stride", "top_k": 3})
    scores = {label["label"]: label["score"] for label in answer["labels"]}
    assert [scores[name] for name in ("red", "green", "blue")] == pytest.approx(expected, abs=1e-5)


def test_rerank_orders_by_score_and_keeps_indices(ranker: Predictor) -> None:
    body = {"query": "who is it", "texts": ["the cat", "a mat", "red", "green one"]}
    ranked = ranker(body)["results"]
    given = ranker({**body, "sort": False})["results"]
    assert [result["index"] for result in given] == [0, 1, 2, 3]
    assert sorted(given, key=lambda result: -result["score"]) == ranked
    alone = ranker({"query": "who is it", "texts": ["red"]})["results"][0]["score"]
    assert given[2]["score"] == pytest.approx(alone, rel=1e-5)


def test_a_long_text_ranks_as_its_best_window(ranker: Predictor) -> None:
    body = {"query": "who is it", "texts": [LONG, "the cat"], "sort": False}
    scores = [1 / (1 + np.exp(-output[0])) for _, output in of_windows(ranker, LONG, body["query"])]
    best = ranker({**body, "truncation": "stride"})["results"]
    first = ranker({**body, "truncation": "truncate"})
    assert best[0]["score"] == pytest.approx(max(scores), abs=1e-5)
    assert first["results"][0]["score"] == pytest.approx(scores[0], abs=1e-5)
    assert max(scores) > scores[0] + 0.01
    assert first["dropped_tokens"] > 0
    assert best[1]["score"] == pytest.approx(first["results"][1]["score"], rel=1e-5)
    with pytest.raises(RequestError) as caught:
        ranker({**body, "truncation": "error"})
    assert (caught.value.type, caught.value.field) == ("too_long", "texts.0")


@pytest.mark.parametrize(
    ("body", "type"),
    [
        ({"query": "who", "texts": []}, "empty"),
        ({"query": "who", "texts": ["a", " "]}, "empty"),
        ({"query": "who", "texts": ["a"] * 129}, "too_many"),
        ({"query": "who", "texts": "a"}, "invalid_request"),
    ],
)
def test_bad_rerank_requests(ranker: Predictor, body: dict, type: str) -> None:
    with pytest.raises(RequestError) as caught:
        ranker(body)
    assert caught.value.type == type


def test_masks_are_filled_in_the_text(filler: Predictor) -> None:
    text = "The [MASK] sat  on a [MASK]."
    masks = filler({"text": text, "top_k": 3})["masks"]
    assert [len(candidates) for candidates in masks] == [3, 3]
    for candidate in masks[0]:
        token = candidate["token"]
        joined = token.removeprefix("##") if token.startswith("##") or token in ".,?!" else f" {token}"
        assert candidate["sequence"] == f"The{joined} sat  on a [MASK]."
    assert all(candidate["sequence"].startswith("The [MASK] sat  on a") for candidate in masks[1])
    assert masks[0][0]["score"] >= masks[0][1]["score"]
    with pytest.raises(RequestError, match="no \\[MASK\\]"):
        filler("the cat")


def test_a_mask_far_into_a_long_text(filler: Predictor) -> None:
    text = f"{LONG} [MASK] {LONG}"
    with pytest.raises(RequestError, match="kept"):
        filler(text)
    assert len(filler({"text": text, "truncation": "stride"})["masks"]) == 1
