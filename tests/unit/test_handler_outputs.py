"""Zero-shot classification, and embeddings that are more than one vector, on fakes whose outputs are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handler.config import ConfigError, SetupConfig
from handler.errors import RequestError
from handler.packing import collate
from handler.predictor import Predictor
from handler.schemas import ZeroShotRequest
from handler.tasks.multi_vector import MultiVectorJob
from handler.tasks.zero_shot import ZeroShotJob
from tests.unit.handler_fakes import MAX_LENGTH, VOCABULARY, PooledLogits, SeveralOutputs, TokenOutputs, predictor

LONG = "the cat sat on a mat who is it red blue green one two " * 4
LABELS = ["cat", "a mat", "one two"]


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("zero"), PooledLogits(3), "zero_shot_classification")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("sparse"), PooledLogits(len(VOCABULARY)), "sparse_embedding")


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("late"), TokenOutputs(1, 6), "multi_vector_embedding")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("hybrid"), SeveralOutputs(5), "hybrid_embedding")


def pair_logits(own: Predictor, text: str, claim: str) -> np.ndarray:
    encoding = own.task.tokenizer.backend.encode(text, claim)
    ids, segments = np.array([encoding.ids]), np.array([encoding.type_ids])
    return own.model(ids, segments, np.ones_like(ids))[0][0]


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_are_entailments(zero_shot: Predictor, multi_label: bool) -> None:
    logits = np.array([pair_logits(zero_shot, "the cat sat", f"it is {label}!") for label in LABELS])
    expected = softmax(logits[:, [0, 2]])[:, 1] if multi_label else softmax(logits[:, 2])
    body = {"text": "the cat sat", "candidate_labels": LABELS, "hypothesis_template": "it is {}!"}
    answer = zero_shot({**body, "multi_label": multi_label})
    assert dict(zip(answer["labels"], answer["scores"], strict=True)) == pytest.approx(
        dict(zip(LABELS, expected, strict=True)), abs=1e-5
    )
    assert answer["scores"] == sorted(answer["scores"], reverse=True)
    joined = zero_shot({**body, "candidate_labels": " cat, a mat,one two, ", "multi_label": multi_label})
    assert joined == answer


def test_one_label_is_against_contradiction(tmp_path: Path) -> None:
    first = predictor(tmp_path, PooledLogits(3), "zero_shot_classification", entailment=0)
    logits = pair_logits(first, "the cat", "This example is red.")
    (score,) = first({"text": "the cat", "candidate_labels": ["red"]})["scores"]
    assert score == pytest.approx(softmax(logits[[2, 0]])[1], abs=1e-5)


def test_a_long_text_is_cut_and_never_the_claim(zero_shot: Predictor) -> None:
    task = zero_shot.task
    claim = task.tokenizer.backend.encode("red", "This example is one two.").ids
    for policy, several in (("truncate", False), ("stride", True)):
        request = ZeroShotRequest.model_validate({"text": LONG, "candidate_labels": ["one two"], "truncation": policy})
        (job,) = task.encode([request])
        assert isinstance(job, ZeroShotJob)
        assert (len(job.sequences) > 1) == several
        for sequence in job.sequences:
            assert len(sequence.ids) <= MAX_LENGTH
            assert sequence.ids[-(len(claim) - 2) :] == claim[2:]
    answer = zero_shot({"text": LONG, "candidate_labels": LABELS})
    assert answer["dropped_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "kind", "field"),
    [
        ({"text": "the cat"}, "invalid_request", "candidate_labels"),
        ({"text": "the cat", "candidate_labels": " , "}, "empty", "candidate_labels"),
        ({"text": "the cat", "candidate_labels": []}, "empty", "candidate_labels"),
        ({"text": "the cat", "candidate_labels": ["cat", " "]}, "empty", "candidate_labels"),
        ({"text": "the cat", "candidate_labels": ["cat", "sat " * 40]}, "too_long", "candidate_labels.1"),
        ({"text": "the cat", "candidate_labels": ["x"] * 129}, "too_many", "candidate_labels"),
        ({"text": "cat " * 9000, "candidate_labels": ["x"] * 100}, "too_large", None),
        *(
            ({"text": "the cat", "candidate_labels": ["x"], "hypothesis_template": template}, "invalid_request",
             "hypothesis_template")
            for template in ("no place", "{} and {}", "{0.__class__}", "{:>9999999}", "{!r}", "{", "{label}")
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_says_why(zero_shot: Predictor, body: Any, kind: str, field: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        zero_shot(body)
    assert (caught.value.type, caught.value.field) == (kind, field)
    assert "\n" not in caught.value.message


def test_braces_may_be_doubled(zero_shot: Predictor) -> None:
    for template in ("{{}} {}", "{0}"):
        assert zero_shot({"text": "the cat", "candidate_labels": ["x"], "hypothesis_template": template})["labels"]


def test_the_config_may_have_the_labels(tmp_path: Path) -> None:
    config = {"candidate_labels": ["cat", "a mat"], "multi_label": True, "allow_overrides": False}
    own = predictor(tmp_path, PooledLogits(3), "zero_shot_classification", config)
    answer = own("the cat sat")
    assert sorted(answer["labels"]) == ["a mat", "cat"]
    assert sum(answer["scores"]) != pytest.approx(1)
    assert own({"text": "the cat sat", "candidate_labels": "red"})["labels"] == ["red"]
    with pytest.raises(RequestError, match="multi_label is fixed"):
        own({"text": "the cat sat", "multi_label": False})


def test_a_template_without_a_place_is_no_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_name": "x", "hypothesis_template": "about"}')
    with pytest.raises(ConfigError, match=r"hypothesis_template: a template must have \{\} once"):
        SetupConfig.load(path)


def output(own: Predictor, text: str) -> tuple[list[int], tuple[np.ndarray, ...]]:
    ids = own.task.tokenizer.backend.encode(text).ids
    array = np.array([ids])
    return ids, tuple(o[0] for o in own.model(array, np.zeros_like(array), np.ones_like(array)))


def test_sparse_weights_by_token_or_id(sparse: Predictor) -> None:
    _, (weights,) = output(sparse, "the cat")
    expected = {index: float(weight) for index, weight in enumerate(weights) if weight > 0}
    by_id = sparse({"text": "the cat", "sparse_keys": "ids"})["sparse_embedding"]
    assert {int(index): weight for index, weight in by_id.items()} == pytest.approx(expected)
    assert list(by_id.values()) == sorted(by_id.values(), reverse=True)
    by_token = sparse("the cat")["sparse_embedding"]
    assert {VOCABULARY[token]: weight for token, weight in by_token.items()} == pytest.approx(expected)
    few = sparse({"text": "the cat", "top_k": 3})["sparse_embedding"]
    assert few == dict(list(by_token.items())[:3])


@pytest.mark.parametrize("sums", [False, True])
def test_weights_of_windows_are_joined(tmp_path: Path, sums: bool) -> None:
    facts = {"sparse": {"kind": "vocabulary", "sums": sums}}
    own = predictor(tmp_path, PooledLogits(len(VOCABULARY)), "sparse_embedding", **facts)
    (job,) = own.task.encode([own.task.request.model_validate({"text": LONG, "truncation": "stride"})])
    windows = [
        own.model(np.array([s.ids]), np.zeros((1, len(s.ids)), int), np.ones((1, len(s.ids)), int))[0][0]
        for s in job.sequences
    ]
    assert len(windows) > 1
    whole = np.maximum(windows, 0).sum(0) if sums else np.maximum(windows, 0).max(0)
    answer = own({"text": LONG, "truncation": "stride", "sparse_keys": "ids"})["sparse_embedding"]
    assert {int(k): v for k, v in answer.items()} == pytest.approx({i: v for i, v in enumerate(whole) if v > 0})


def test_the_models_own_limit_of_weights(tmp_path: Path) -> None:
    facts = {"sparse": {"kind": "vocabulary", "most": 4}}
    own = predictor(tmp_path, PooledLogits(len(VOCABULARY)), "sparse_embedding", **facts)
    assert len(own("the cat")["sparse_embedding"]) == 4
    assert len(own({"text": "the cat", "top_k": 9})["sparse_embedding"]) == 9


def test_a_vector_for_each_token_that_counts(late: Predictor) -> None:
    ids, (vectors,) = output(late, "the cat . sat")
    counted = [place for place, index in enumerate(ids) if index != VOCABULARY["."]]
    assert len(counted) == len(ids) - 1
    for role in ({}, {"input_type": "document"}):
        made = late({"text": "the cat . sat", **role})["token_embeddings"]
        assert np.array(made) == pytest.approx(vectors[counted], abs=1e-5)
    query = late({"text": "the cat . sat", "input_type": "query"})["token_embeddings"]
    assert np.array(query) == pytest.approx(vectors, abs=1e-5)


def test_scores_are_max_sim(late: Predictor) -> None:
    texts = ["the cat sat", ". a mat .", LONG]
    query = np.array(late({"text": "who is it", "input_type": "query"})["token_embeddings"])
    documents = [np.array(late({"text": text, "input_type": "document"})["token_embeddings"]) for text in texts]
    expected = [(query @ document.T).max(1).sum() for document in documents]
    body = {"query": "who is it", "texts": texts}
    given = late({**body, "sort": False, "return_text": True})["results"]
    assert [row["score"] for row in given] == pytest.approx(expected, rel=1e-5)
    assert [row["text"] for row in given] == texts
    assert [row["index"] for row in late(body)["results"]] == np.argsort(-np.array(expected)).tolist()


def test_queries_are_cut_and_texts_read_in_windows(late: Predictor) -> None:
    request = late.task.request.model_validate({"query": LONG, "texts": [LONG], "truncation": "stride"})
    (job,) = late.task.encode([request])
    assert isinstance(job, MultiVectorJob)
    assert job.counts[0] == 1
    assert len(job.sequences[0].ids) == 12
    assert job.counts[1] > 1


@pytest.mark.parametrize(
    "body",
    [
        {}, {"query": "a"}, {"texts": ["a"]}, {"text": "a", "query": "b", "texts": ["c"]},
        {"text": "a", "texts": ["b"]},
    ],
)  # fmt: skip
def test_either_a_text_or_a_query_with_texts(late: Predictor, body: Any) -> None:
    with pytest.raises(RequestError, match="either text, or query and texts"):
        late(body)


@pytest.mark.parametrize("attend", [False, True])
def test_a_query_is_filled_up(tmp_path: Path, attend: bool) -> None:
    expansion = {"token": VOCABULARY["[MASK]"], "length": 10, "attend": attend}
    own = predictor(tmp_path, TokenOutputs(1, 6), "multi_vector_embedding", multi_vector={"expansion": expansion})
    bodies = [{"text": "who is it", "input_type": role} for role in ("query", "document")]
    jobs = own.task.encode([own.task.request.model_validate(body) for body in bodies])
    query, document = (job.sequences[0] for job in jobs)
    assert query.ids == [*document.ids, *[VOCABULARY["[MASK]"]] * (10 - len(document.ids))]
    _, _, mask = collate([query, document], 0)
    assert mask[0].tolist() == [1] * len(document.ids) + [1 if attend else 3] * (10 - len(document.ids))
    assert mask[1].tolist() == [1] * len(document.ids) + [0] * (10 - len(document.ids))
    assert [len(own(body)["token_embeddings"]) for body in bodies] == [10, len(document.ids)]
    long = own.task.encode([own.task.request.model_validate({"text": LONG, "input_type": "query"})])
    assert len(long[0].sequences[0].ids) == MAX_LENGTH


def test_three_outputs_of_one_pass(hybrid: Predictor) -> None:
    ids, (dense, weights, vectors) = output(hybrid, "the cat the")
    answer = hybrid({"text": "the cat the", "sparse_keys": "tokens"})
    assert answer["embedding"] == pytest.approx(dense.tolist(), rel=1e-5)
    the = max(weight for index, weight in zip(ids, weights, strict=True) if index == VOCABULARY["the"])
    assert set(answer["sparse_embedding"]) <= {"the", "cat"}
    assert answer["sparse_embedding"].get("the", 0.0) == pytest.approx(the)
    assert np.array(answer["token_embeddings"]) == pytest.approx(vectors[1:], rel=1e-5)
    passes = hybrid.metrics.totals["passes"]
    some = hybrid({"text": "the cat the", "outputs": ["sparse"]})
    assert hybrid.metrics.totals["passes"] == passes + 1
    assert set(some) == {"sparse_embedding"}
    assert set(some["sparse_embedding"]) == {str(VOCABULARY[token]) for token in answer["sparse_embedding"]}


def test_an_output_that_the_archive_lacks(tmp_path: Path) -> None:
    own = predictor(tmp_path, SeveralOutputs(5), "hybrid_embedding", outputs=["dense", "sparse"])
    with pytest.raises(RequestError, match="no multi_vector output; it has: dense, sparse"):
        own.task.finish(_job(own), [(np.zeros(5), np.zeros(4))])


def _job(own: Predictor) -> Any:
    (job,) = own.task.encode([own.task.request.model_validate({"text": "the cat", "outputs": ["multi_vector"]})])
    return job
