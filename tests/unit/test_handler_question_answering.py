"""Question answering: spans chosen together, inside the context, over windows, with offsets and no answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler.errors import RequestError
from handler.predictor import Predictor
from handler.tasks.question_answering import best_spans
from tests.unit.handler_fakes import VOCABULARY, WORDS, Pointer, TokenOutputs, predictor

QUESTION = "where is it"


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Never answers "no answer"."""
    folder = tmp_path_factory.mktemp("eager")
    return predictor(folder, TokenOutputs(2), "question_answering", {"null_answer": False, "n_best": 5})


@settings(max_examples=60, deadline=None)
@given(
    start=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    end=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    count=st.integers(1, 6),
    longest=st.integers(1, 14),
)
def test_best_spans_are_those_of_an_exhaustive_search(
    start: list[float], end: list[float], count: int, longest: int
) -> None:
    size = len(start)
    pairs = [(start[i] * end[j], i, j) for i in range(size) for j in range(i, min(size, i + longest))]
    found = best_spans(np.array(start), np.array(end[:size]), count, longest)
    assert [score for score, _, _ in found] == sorted((score for score, _, _ in pairs), reverse=True)[:count]
    assert set(found) <= set(pairs)
    assert len(set(found)) == len(found)


contexts = st.text(alphabet=st.sampled_from([*"abz .\n\t", "é", "\u0301", "中", "م", "🙂", "\u200b"]), min_size=1)


@settings(max_examples=80, deadline=None)
@given(context=contexts.filter(lambda text: not text.isspace()))
def test_offsets_cut_the_answer_out_of_the_given_context(eager: Predictor, context: str) -> None:
    reply = eager.predict([{"body": {"question": QUESTION, "context": context}}])[0]
    assert reply.status == 200
    for span in reply.payload["answers"]:
        assert 0 <= span["start"] <= span["end"] <= len(context)
        assert context[span["start"] : span["end"]] == span["answer"]


def test_a_long_context_is_read_to_its_end(tmp_path: Any) -> None:
    """The model points at one token, which stands in the last of many windows."""
    needle = VOCABULARY["green"]
    own = predictor(tmp_path, Pointer(needle), "question_answering")
    context = "the cat sat on a mat " * 40 + "green"
    answer = own({"question": QUESTION, "context": context})
    assert (answer["answer"], answer["start"], answer["end"]) == ("green", len(context) - 5, len(context))
    assert "dropped_tokens" not in answer
    cut = own({"question": QUESTION, "context": context, "truncation": "truncate"})
    assert cut["answer"] != "green"
    assert cut["dropped_tokens"] > 0
    with pytest.raises(RequestError, match="tokens"):
        own({"question": QUESTION, "context": context, "truncation": "error"})


def test_the_question_is_never_the_answer(tmp_path: Any) -> None:
    own = predictor(tmp_path, Pointer(VOCABULARY["green"]), "question_answering", {"null_answer": False})
    answer = own({"question": "is it green", "context": "the green cat"})
    assert (answer["answer"], answer["start"]) == ("green", 4)
    answer = own({"question": "is it green", "context": "the cat"})
    assert answer["answer"] in ("the", "cat", "the cat")


def test_no_answer_and_its_threshold(tmp_path: Any) -> None:
    own = predictor(tmp_path, Pointer(VOCABULARY["[CLS]"]), "question_answering")
    body = {"question": QUESTION, "context": "the cat sat"}
    withheld = own(body)
    assert (withheld["answer"], withheld["start"], withheld["end"]) == ("", 0, 0)
    assert withheld["score"] == withheld["no_answer_score"] > 0.9
    assert own({**body, "null_threshold": 100})["answer"] != ""


def test_n_best_are_distinct_and_sorted(eager: Predictor) -> None:
    answer = eager({"question": QUESTION, "context": " ".join(WORDS * 3)})
    scores = [span["score"] for span in answer["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert len({(span["start"], span["end"]) for span in answer["answers"]}) == 5
    assert answer["answer"] == answer["answers"][0]["answer"]


def test_an_answers_length_is_bounded(eager: Predictor) -> None:
    body = {"question": QUESTION, "context": " ".join(WORDS), "max_answer_length": 1, "n_best": 20}
    assert all(" " not in span["answer"] for span in eager(body)["answers"])


def test_a_question_that_fills_the_model_is_refused(reader: Predictor) -> None:
    with pytest.raises(RequestError) as caught:
        reader({"question": " ".join(WORDS * 3), "context": "the cat"})
    assert caught.value.type == "too_long"


@pytest.mark.parametrize("body", [b"who is it", {"question": "who"}, {"question": "who", "context": " "}, ["who"]])
def test_what_is_no_question_is_refused(reader: Predictor, body: Any) -> None:
    reply = reader.predict([{"body": body}])[0]
    assert reply.status in (400, 422) or "error" in reply.payload[0]
