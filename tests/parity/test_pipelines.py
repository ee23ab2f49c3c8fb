"""Side by side with transformers' pipelines and sentence-transformers: their answers are committed, see make_expected.

Scores within 1e-3 in fp32; labels, tokens, texts and offsets the same. Two labels or answers whose scores the
pipeline itself holds within that tolerance of each other may change places.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.archive import LibraryFile, write_files
from builder.checkpoint import load
from handler.characters import whole
from handler.config import SetupConfig
from handler.predictor import Predictor
from tests.parity import pipeline_cases as cases

TOLERANCE = 1e-3


def expected(task: str) -> Any:
    return json.loads((cases.EXPECTED / f"{task}.json").read_text())["answers"]


@pytest.fixture(scope="module")
def predictor_of(cpu_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Predictor]:
    """An archive's files for a task, staged by the builder with the fused encoder, and a predictor over them."""

    def make(task: str, **settings: Any) -> Predictor:
        folder = tmp_path_factory.mktemp(task)
        stage = folder / "stage"
        stage.mkdir()
        model = cases.checkpoint(task, folder / "checkpoint")
        config = SetupConfig.model_validate({"model_name": str(model), "task": task, "warm_up": False, **settings})
        libraries = [LibraryFile(cpu_library, "cpu", [])]
        write_files(stage, task, config, load(config), libraries, lambda _: None)
        return Predictor.load(stage)

    return make


def answers(predictor: Predictor, payloads: list[Any]) -> list[Any]:
    """In batches of mixed requests, as a server would send them."""
    made = []
    for start in range(0, len(payloads), 32):
        replies = predictor.predict([{"body": payload} for payload in payloads[start : start + 32]])
        assert {reply.status for reply in replies} == {200}
        made += [reply.payload for reply in replies]
    return made


def test_text_classification(predictor_of: Callable[..., Predictor]) -> None:
    predictor = predictor_of("sequence_classification", max_length=128, stride=32)
    texts = cases.texts()
    made = answers(predictor, [{"text": text, "top_k": 100} for text in texts])
    for text, answer, theirs in zip(texts, made, expected("sequence_classification"), strict=True):
        ours = {label["label"]: label["score"] for label in answer["labels"]}
        assert ours == pytest.approx(dict(theirs), abs=TOLERANCE), ascii(text)
        assert dict(theirs)[answer["label"]] >= theirs[0][1] - TOLERANCE


def test_fill_mask(predictor_of: Callable[..., Predictor]) -> None:
    texts = cases.masked_texts()
    made = answers(predictor_of("fill_mask"), [{"text": text} for text in texts])
    for text, answer, theirs in zip(texts, made, expected("fill_mask"), strict=True):
        (ours,) = answer["masks"]
        scores = [score for _, _, score in theirs]
        assert [candidate["score"] for candidate in ours] == pytest.approx(scores, abs=TOLERANCE), ascii(text)
        if all(a - b > TOLERANCE for a, b in pairwise(scores)):
            assert [[c["token_id"], c["token"]] for c in ours] == [row[:2] for row in theirs]


def test_feature_extraction(predictor_of: Callable[..., Predictor]) -> None:
    predictor = predictor_of("embedding", max_length=cases.MAX_LENGTH["embedding"])
    texts = cases.texts()
    made = answers(predictor, [{"text": text, "normalize": False} for text in texts])
    for text, answer, theirs in zip(texts, made, expected("embedding"), strict=True):
        vector = np.array(answer["embedding"])
        ours = [float(np.linalg.norm(vector)), *vector[:16]]
        assert ours == pytest.approx(theirs, abs=TOLERANCE), ascii(text)


def test_zero_shot_classification(predictor_of: Callable[..., Predictor]) -> None:
    claims = cases.claims()
    made = answers(predictor_of("zero_shot_classification"), claims)
    for claim, answer, (labels, scores) in zip(claims, made, expected("zero_shot_classification"), strict=True):
        assert answer["scores"] == pytest.approx(scores, abs=TOLERANCE), ascii(claim)
        if all(a - b > TOLERANCE for a, b in pairwise(scores)):
            assert answer["labels"] == labels


def test_sparse_embeddings(predictor_of: Callable[..., Predictor]) -> None:
    texts = cases.texts()
    made = answers(predictor_of("sparse_embedding"), [{"text": text} for text in texts])
    counts = []
    for text, answer, (count, total, heaviest) in zip(texts, made, expected("sparse_embedding"), strict=True):
        weights = answer["sparse_embedding"]
        assert abs(len(weights) - count) <= 2, ascii(text)  # one next to zero may be rounded away
        assert sum(weights.values()) == pytest.approx(total, rel=TOLERANCE)
        assert dict(heaviest) == pytest.approx({token: weights[token] for token, _ in heaviest}, abs=TOLERANCE)
        assert list(weights.values()) == sorted(weights.values(), reverse=True)
        counts.append(count)
    assert 10 < np.median(counts) < 3000


def test_multi_vector_embeddings(predictor_of: Callable[..., Predictor]) -> None:
    predictor = predictor_of("multi_vector_embedding")
    texts = cases.texts()
    embedded = {
        role: answers(predictor, [{"text": text, "input_type": role} for text in texts])
        for role in ("query", "document")
    }
    scored = answers(predictor, [{"query": cases.QUERY, "texts": [text]} for text in texts])
    rows = zip(texts, embedded["query"], embedded["document"], scored, expected("multi_vector_embedding"), strict=True)
    for text, *both, score, (*sums, similarity) in rows:
        for answer, (count, *first) in zip(both, sums, strict=True):
            vectors = np.array(answer["token_embeddings"])
            assert vectors.shape == (count, 32), ascii(text)
            assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=TOLERANCE)
            assert vectors.sum(0)[:8] == pytest.approx(first, abs=10 * TOLERANCE)
        assert score["results"][0]["score"] == pytest.approx(similarity, abs=10 * TOLERANCE)


@pytest.fixture(scope="module")
def tagger(predictor_of: Callable[..., Predictor]) -> Predictor:
    length = cases.MAX_LENGTH["token_classification"]
    return predictor_of("token_classification", max_length=length, stride=cases.TOKEN_STRIDE)


@pytest.mark.parametrize("strategy", cases.STRATEGIES)
def test_token_classification(tagger: Predictor, strategy: str) -> None:
    texts = cases.tagged_texts(strategy)
    truncation = "truncate" if strategy == "none" else "stride"
    bodies = [{"text": text, "aggregation": strategy, "truncation": truncation} for text in texts]
    for text, answer, theirs in zip(
        texts, answers(tagger, bodies), expected("token_classification")[strategy], strict=True
    ):
        ours = [[e["label"], e["score"], e["start"], e["end"]] for e in answer["entities"]]
        if strategy != "none":  # the pipeline cuts the mark off the last letter of "cafe\u0301"
            theirs = [[*entity[:2], *whole(text, *entity[2:])] for entity in theirs]
        assert [[e[0], *e[2:]] for e in ours] == [[e[0], *e[2:]] for e in theirs], ascii(text)
        assert [e[1] for e in ours] == pytest.approx([e[1] for e in theirs], abs=TOLERANCE)


def test_question_answering(predictor_of: Callable[..., Predictor]) -> None:
    predictor = predictor_of("question_answering", max_length=384, stride=128)
    questions = cases.questions()
    made = answers(predictor, [{**question, "n_best": 2} for question in questions])
    long_ones = 0
    for question, answer, theirs in zip(questions, made, expected("question_answering"), strict=True):
        ours = [[a["answer"], a["score"], a["start"], a["end"]] for a in answer["answers"]]
        ours.append(["", answer["no_answer_score"], 0, 0])
        ours.sort(key=lambda a: -a[1])
        capped = [[text, min(1.0, score), *span] for text, score, *span in theirs]
        assert [a[1] for a in ours[:2]] == pytest.approx([a[1] for a in capped], abs=TOLERANCE), ascii(question)
        if capped[0][1] - capped[1][1] > TOLERANCE:
            assert [answer["answer"], answer["start"], answer["end"]] == [capped[0][0], *capped[0][2:]]
        context = question["context"]
        assert all(context[a["start"] : a["end"]] == a["answer"] for a in answer["answers"])
        long_ones += len(predictor.task.tokenizer.backend.encode(context)) > 384
    assert long_ones >= 10
