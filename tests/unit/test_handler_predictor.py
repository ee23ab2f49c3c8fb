"""Whole batches through the predictor: bodies of every shape, good and bad ones together."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler.errors import STATUS, RequestError
from handler.predictor import Predictor
from tests.unit.handler_fakes import WORDS, PooledLogits, predictor

TEXT = "the cat sat on a mat"
GOOD = {"text": TEXT}
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}


def raw(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "row",
    [
        {"body": TEXT.encode()},
        {"data": TEXT.encode()},
        {"body": TEXT},
        {"body": GOOD},
        {"body": raw(GOOD)},
        {"body": bytearray(raw({**GOOD, "target": 1}))},
        {"body": {**GOOD, "target": "red"}},
        {"body": {"data": GOOD}},
        {"text": TEXT.encode()},
        {"body": b"\xef\xbb\xbf" + TEXT.encode()},
    ],
)
def test_one_text_in_every_shape_gets_the_same_answer(classifier: Predictor, row: dict) -> None:
    reply = classifier.predict([row])[0]
    assert (reply.status, reply.payload) == (200, classifier(TEXT))
    assert reply.payload["label"] in ("red", "green", "blue")
    assert 1 / 3 <= reply.payload["score"] <= 1


@pytest.mark.parametrize(
    ("row", "type", "field"),
    [
        ({"body": b'{"text": '}, "invalid_json", None),
        ({"body": b'{"text": "a", "top_k": NaN}'}, "invalid_json", None),
        ({"body": b"[" * 100_000}, "invalid_json", None),
        ({"body": b'{"text": "a", "top_k": ' + b"9" * 5000 + b"}"}, "invalid_json", None),
        ({"body": b"\xff\xfe"}, "invalid_encoding", None),
        ({"body": {"text": "\ud800"}}, "invalid_encoding", "text"),
        ({"body": b""}, "empty", None),
        ({"body": b" \r\n"}, "empty", None),
        ({}, "empty", None),
        ({"body": {"text": ""}}, "empty", "text"),
        ({"body": {"text": " \n\t"}}, "empty", "text"),
        ({"body": []}, "empty", None),
        ({"body": {}}, "invalid_request", "text"),
        ({"body": {"text": 5}}, "invalid_request", "text"),
        ({"body": {"text": None}}, "invalid_request", "text"),
        ({"body": {"text": TEXT, "secret": "key"}}, "invalid_request", None),
        ({"body": {"text": TEXT, "top_k": 0}}, "invalid_request", "top_k"),
        ({"body": {"text": TEXT, "top_k": float("nan")}}, "invalid_request", "top_k"),
        ({"body": {"text": TEXT, "target": []}}, "invalid_request", "target"),
        ({"body": 5}, "invalid_request", None),
        ({"body": True}, "invalid_request", None),
        ({"body": {"instances": {}}}, "invalid_request", "instances"),
        ({"body": {"inputs": TEXT, "parameters": []}}, "invalid_request", "parameters"),
        ({"body": {"text": TEXT * 20, "truncation": "error"}}, "too_long", None),
        ({"body": "x" * 1_000_001}, "too_large", None),
        ({"body": [TEXT] * 129}, "too_many", None),
        ({"body": {"inputs": [TEXT] * 129}}, "too_many", "inputs"),
        ({"body": {"text": TEXT * 20_000, "truncation": "stride"}}, "too_large", None),
        ({"body": {"text": TEXT * 20, "text_pair": TEXT * 20, "truncation": "stride"}}, "too_long", None),
        ({"body": {"inputs": [TENSOR, TENSOR]}}, "invalid_request", "inputs"),
        ({"body": {"inputs": [TENSOR], "id": "x" * 300}}, "invalid_request", "id"),
        ({"body": {"inputs": [TENSOR], "id": "\ud800"}}, "invalid_request", "id"),
    ],
)
def test_a_bad_request_gets_its_own_error_and_its_neighbours_their_answers(
    classifier: Predictor, row: dict, type: str, field: str | None
) -> None:
    replies = classifier.predict([{"body": GOOD}, row, {"body": GOOD}])
    assert [reply.status for reply in replies] == [200, STATUS[type], 200]
    error = replies[1].payload["error"]
    assert (error["type"], error["field"]) == (type, field)
    assert "\n" not in error["message"]
    assert replies[1].phrase.isascii()
    assert replies[0].payload == replies[2].payload == classifier(TEXT)


def test_errors_do_not_repeat_what_was_sent(classifier: Predictor) -> None:
    for body in ({"text": TEXT, "hunter2": 1}, {"text": ["hunter2"]}, {"text": TEXT, "top_k": "hunter2"}):
        assert "hunter2" not in json.dumps(classifier.predict([{"body": body}])[0].payload)


SEND = '; send {"text": "..."} or a list of these'


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"txt": TEXT}, "text", f"text: Field required; txt is no field of this task (did you mean text?){SEND}"),
        ({"Sentence": TEXT}, "text",
         f"text: Field required; sentence is no field of this task (did you mean text?){SEND}"),
        ({TEXT: 1}, "text", f"text: Field required; a field is unknown to this task{SEND}"),
        ({}, "text", f"text: Field required{SEND}"),
        ({"text": [TEXT, TEXT]}, "text", f"text: Input should be a valid string{SEND}"),
        ({"text": TEXT, "topk": 1}, None, "topk is no field of this task (did you mean top_k?)"),
        ({"text": TEXT, "hunter2": 1}, None, "a field is unknown to this task; known are truncation, adapter, text, "
         "text_pair, target, top_k, function_to_apply"),
    ],
)  # fmt: skip
def test_an_error_says_what_was_meant_and_what_is_taken(
    classifier: Predictor, body: dict, field: str | None, message: str
) -> None:
    for row, read in ((body, lambda payload: payload), ([body], lambda payload: payload[0])):
        payload = read(classifier.predict([{"body": row}])[0].payload)
        assert payload["error"] == {"type": "invalid_request", "message": message, "field": field}


def test_an_unread_bare_brace_is_text_when_declared_as_text(classifier: Predictor) -> None:
    row = {"body": b"{the cat"}
    assert classifier.predict([row], ["text/plain; charset=utf-8"])[0].status == 200
    assert classifier.predict([row], ["application/json"])[0].status == 400


def test_a_list_is_answered_by_a_list_with_errors_in_place(classifier: Predictor) -> None:
    reply = classifier.predict([{"body": [TEXT, {"text": ""}, {"text": "who", "text_pair": "the cat"}, 7]}])[0]
    assert reply.status == 200
    first, second, third, fourth = reply.payload
    assert first == classifier(TEXT)
    assert second["error"]["type"] == "empty"
    assert third == classifier({"text": "who", "text_pair": "the cat"})
    assert fourth["error"]["type"] == "invalid_request"


def test_parameters_apply_to_every_input_and_an_inputs_own_come_first(classifier: Predictor) -> None:
    answers = classifier({"inputs": [TEXT, {"text": TEXT, "top_k": 1}], "parameters": {"top_k": 2}})
    assert [len(answer["labels"]) for answer in answers] == [2, 1]
    reply = classifier.predict([{"body": TEXT.encode(), "top_k": b"3"}])[0]
    assert len(reply.payload["labels"]) == 3
    assert sum(label["score"] for label in reply.payload["labels"]) == pytest.approx(1)


def test_kserve_bodies(classifier: Predictor) -> None:
    expected = classifier(TEXT)
    assert classifier({"instances": [TEXT, {"data": TEXT}, GOOD]}) == {"predictions": [expected] * 3}
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": [TEXT, "who"]}
    answer = classifier({"id": "seven", "inputs": [tensor]})
    assert answer["id"] == "seven"
    output = answer["outputs"][0]
    assert output["shape"] == [2]
    assert json.loads(output["data"][0]) == expected
    nameless = {**tensor, "name": "input-0"}
    assert classifier({"inputs": [nameless]})["outputs"][0] == output
    broken = {**nameless, "data": [TEXT, "{who"]}
    first, second = map(json.loads, classifier({"inputs": [broken]})["outputs"][0]["data"])
    assert (first, second["error"]["type"]) == (expected, "invalid_json")


def test_overrides_can_be_forbidden(tmp_path: Any) -> None:
    fixed = predictor(tmp_path, PooledLogits(2), "sequence_classification", {"allow_overrides": False})
    assert fixed({"text": TEXT, "target": 1})["label"] in ("LABEL_0", "LABEL_1")
    with pytest.raises(RequestError) as caught:
        fixed({"text": TEXT, "top_k": 2})
    assert (caught.value.type, caught.value.field) == ("unsupported", "top_k")


def test_truncation_reports_what_it_dropped_and_stride_drops_nothing(classifier: Predictor) -> None:
    long = " ".join(WORDS * 4)
    assert classifier({"text": long, "truncation": "truncate"})["dropped_tokens"] == 4 * len(WORDS) + 2 - 24
    assert "dropped_tokens" not in classifier({"text": long, "truncation": "stride"})
    assert classifier({"text": long})["dropped_tokens"] > 0
    pair = classifier({"text": long, "text_pair": long})
    assert pair["dropped_tokens"] == 8 * len(WORDS) + 3 - 24


@pytest.mark.parametrize(
    ("problem", "labels", "check"),
    [
        ("multi_label_classification", 3, lambda a: len(a["labels"]) == 3),
        ("regression", 1, lambda a: "labels" not in a),
        (None, 1, lambda a: 0 <= a["score"] <= 1),
    ],
)
def test_problem_types(tmp_path: Any, problem: str | None, labels: int, check: Any) -> None:
    own = predictor(tmp_path, PooledLogits(labels), "sequence_classification", problem_type=problem)
    assert check(own(TEXT))


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(texts, min_size=1, max_size=8), order=st.randoms(use_true_random=False))
def test_an_item_of_a_batch_equals_the_item_alone_in_any_order(
    classifier: Predictor, batch: list[str], order: Any
) -> None:
    alone = {text: classifier(text) for text in batch}
    shuffled = list(batch)
    order.shuffle(shuffled)
    for text, reply in zip(shuffled, classifier.predict([{"body": text} for text in shuffled]), strict=True):
        assert reply.payload["label"] == alone[text]["label"]
        assert reply.payload["score"] == pytest.approx(alone[text]["score"], rel=1e-5)


def test_a_failing_model_costs_a_500_with_an_id_that_is_in_the_log(
    classifier: Predictor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: np.ndarray) -> None:
        raise KeyError("hunter2")

    monkeypatch.setattr(classifier._packer, "_model", broken)
    reply = classifier.predict([{"body": "the hunter2"}])[0]
    assert reply.status == 500
    identifier = reply.payload["error"]["message"].rpartition(" ")[2]
    assert identifier in caplog.text
    assert "KeyError" in caplog.text
    assert "hunter2" not in caplog.text
