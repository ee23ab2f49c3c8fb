"""Explanations: the shares add up to what they explain; targets; windows; what they may cost; pages."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from handler import explain
from handler.config import SetupConfig
from handler.errors import RequestError
from handler.explain import Clock, Explainer
from handler.html import page
from handler.metrics import Metrics
from handler.original import OriginalModel
from handler.predictor import Predictor
from handler.tokenizer import Tokenizer
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.unit.handler_fakes import ORIGINAL, facts

CPU = torch.device("cpu")
TEXT = "the parcel has not arrived & nobody answers"
LONG = f"{TEXT} " * 20
MAX_LENGTH = 64


def explained(tmp_path: Path, task: str, config: dict | None = None, family: str = "bert", **changes: Any) -> Predictor:
    """A predictor of kind ori on a small random checkpoint, with explanations."""
    from transformers import AutoTokenizer

    config = {**(config or {})}
    config["explanations"] = {"seconds": 3600, **config.get("explanations", {})}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family, task)
    loaded = AutoTokenizer.from_pretrained(checkpoint)
    loaded.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    segments = family in ("bert", "electra")
    settings = {
        "model": ORIGINAL,
        "max_positions": MAX_LENGTH,
        "pad_id": loaded.pad_token_id,
        "uses_segments": segments,
    }
    own = facts(task, family=family, **settings, **changes)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", MAX_LENGTH, segments)
    made = Predictor(
        own,
        SetupConfig.model_validate({"model_name": "x", "stride": 8, "response_timeout": 7200, **config}),
        tokenizer,
        OriginalModel(checkpoint, own, CPU),
    )
    made.explainer = Explainer(tmp_path, own, made.task, CPU, made.metrics)
    return made


def refused(predictor: Predictor, body: Any) -> dict[str, Any]:
    """The error of a request that gets none but that."""
    error: dict[str, Any] = predictor.explain({"body": body}).payload["error"]
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_add_up_to_the_difference_from_the_baseline(tmp_path: Path, family: str) -> None:
    """Integrated gradients' completeness; the sum's error is the delta and shrinks with the number of steps."""
    body = {"text": "the parcel has not arrived", "target": 1}
    deltas = []
    # DistilBERT's head has a kink (ReLU), where the sum nears the integral slowly.
    many, most = (1000, 0.03) if family == "distilbert" else (300, 1e-3)
    for steps in (2, 3, 4, many):
        predictor = explained(
            tmp_path / str(steps), "sequence_classification", {"explanations": {"steps": steps}}, family
        )
        explanation = predictor.explain({"body": body}).payload
        assert "delta" in explanation, explanation
        deltas.append(abs(explanation["delta"]))
    encoding = predictor.task.tokenizer.backend.encode(body["text"])
    special = torch.tensor([encoding.special_tokens_mask], dtype=torch.bool)
    ids = torch.tensor([encoding.ids])
    module = predictor.explainer.module  # type: ignore[union-attr]
    positions = {}
    if "roberta" in family or family == "camembert":
        positions = {"position_ids": torch.arange(ids.shape[1])[None] + predictor.facts.pad_id + 1}
    pads = torch.full_like(ids, predictor.facts.pad_id)
    with torch.no_grad():
        whole, start = (
            module(input_ids=i, attention_mask=torch.ones_like(ids), **positions).logits[0, 1]
            for i in (ids, torch.where(special, ids, pads))
        )
    shares = sum(token["attribution"] for token in explanation["tokens"])
    assert shares == pytest.approx(float(whole - start), abs=most)
    assert deltas[-1] < most
    assert deltas[-1] < max(deltas[:-1]) / 2


def test_tokens_have_offsets_into_their_text(tmp_path: Path) -> None:
    predictor = explained(tmp_path, "sequence_classification", labels=["a", "b", "c"])
    body = {"text": TEXT, "text_pair": "my order"}
    explanation = predictor.explain({"body": body}).payload
    texts = (TEXT, "my order")
    assert {token["text"] for token in explanation["tokens"]} == {0, 1}
    assert all(texts[t["text"]][t["start"] : t["end"]] == t["token"] for t in explanation["tokens"])
    assert explanation["target"] == predictor(body)["label"]


@pytest.mark.parametrize(("target", "status"), [("b", 200), (2, 200), ("d", 422), (3, 422), (-1, 422)])
def test_targets_by_name_or_number(tmp_path: Path, target: int | str, status: int) -> None:
    predictor = explained(tmp_path, "sequence_classification", labels=["a", "b", "c"])
    assert predictor.explain({"body": {"text": TEXT, "target": target}}).status == status


def test_a_label_without_a_name_goes_by_its_number(tmp_path: Path) -> None:
    predictor = explained(tmp_path, "sequence_classification")
    assert predictor.explain({"body": {"text": TEXT, "target": "LABEL_2"}}).payload["target"] == "LABEL_2"


def test_token_classification_explains_its_surest_entity(tmp_path: Path) -> None:
    predictor = explained(tmp_path, "token_classification", {"explanations": {"steps": 300}}, labels=["X", "Y", "Z"])
    explanation = predictor.explain({"body": {"text": TEXT, "aggregation": "none"}}).payload
    surest = max(predictor({"text": TEXT, "aggregation": "none"})["entities"], key=lambda entity: entity["score"])
    assert explanation["target"] == surest["label"]
    assert abs(explanation["delta"]) < 1e-2
    shares = [token["attribution"] for token in explanation["tokens"]]
    assert abs(explanation["delta"]) < max(map(abs, shares))


def test_of_a_text_in_windows_the_one_with_the_surest_entity_is_explained(tmp_path: Path) -> None:
    # No label is "O": every token is an entity, whatever the random model makes of it.
    predictor = explained(tmp_path, "token_classification", {"explanations": {"steps": 1}}, labels=["X", "Y", "Z"])
    begins = set()
    for place in range(8):
        text = " ".join([*[TEXT] * place, "a lighthouse on the cliff", *[TEXT] * (8 - place)])
        explanation = predictor.explain({"body": text}).payload
        surest = max(predictor({"text": text, "aggregation": "none"})["entities"], key=lambda entity: entity["score"])
        spans = [(token["start"], token["end"]) for token in explanation["tokens"]]
        assert explanation["target"] == surest["label"]
        assert (surest["start"], surest["end"]) in spans
        begins.add(spans[0][0])
    assert max(begins) > 0


def test_question_answering_explains_start_and_end(tmp_path: Path) -> None:
    predictor = explained(tmp_path, "question_answering")
    body = {"question": "where is my order", "context": LONG}
    explanation = predictor.explain({"body": body}).payload
    assert set(explanation) == {"start", "end"}
    texts = (body["question"], body["context"])
    for side in explanation.values():
        assert all(texts[t["text"]][t["start"] : t["end"]] == t["token"] for t in side["tokens"])
    json.dumps(explanation, allow_nan=False)
    cut = predictor.explain({"body": {**body, "truncation": "truncate"}}).payload
    assert cut["dropped_tokens"] > 0
    assert f"{cut['dropped_tokens']} tokens more were cut off" in page([cut])


@pytest.mark.parametrize("policy", ["truncate", "error", "stride"])
def test_a_long_text_is_treated_as_its_policy_says(tmp_path: Path, policy: str) -> None:
    predictor = explained(tmp_path, "sequence_classification", {"truncation": policy})
    if policy == "truncate":
        explanation = predictor.explain({"body": LONG}).payload
        assert explanation["dropped_tokens"] == predictor(LONG)["dropped_tokens"] > 0
        assert predictor.metrics.totals["truncations"] > 1
    else:
        error = refused(predictor, LONG)
        assert error["type"] == {"error": "too_long", "stride": "unsupported"}[policy]
        assert predictor.explain({"body": {"text": LONG, "truncation": "truncate"}}).status == 200
    assert "dropped_tokens" not in predictor.explain({"body": TEXT}).payload


def test_more_inputs_or_windows_than_allowed_are_refused(tmp_path: Path) -> None:
    limits = {"explanations": {"max_inputs": 2, "max_windows": 2}}
    predictor = explained(tmp_path, "question_answering", limits)
    body = {"question": "where is my order", "context": TEXT}
    assert refused(predictor, [body] * 3)["type"] == "too_many"
    assert len(predictor.explain({"body": [body] * 2}).payload) == 2
    assert refused(predictor, {**body, "context": LONG})["type"] == "too_many"


def test_passes_keep_to_their_own_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = explained(tmp_path, "sequence_classification", {"explanations": {"batch_tokens": 100}})
    rows = passes(predictor, monkeypatch)
    explanation = predictor.explain({"body": TEXT}).payload
    length = len(predictor.task.tokenizer.backend.encode(TEXT).ids)
    assert max(rows) == 100 // length
    assert sum(rows) == predictor.config.explanations.steps
    assert len(explanation["tokens"]) == length - 2


def passes(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, most: int = 1000) -> list[int]:
    """The rows of each pass that is differentiated; more than ``most`` are out of memory."""
    explainer = predictor.explainer
    assert explainer is not None
    run = explainer._run
    seen: list[int] = []

    def counted(ids: torch.Tensor, *others: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            if len(ids) > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            seen.append(len(ids))
        return run(ids, *others)

    monkeypatch.setattr(explainer, "_run", counted)
    return seen


def test_out_of_memory_halves_the_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = explained(tmp_path, "sequence_classification", {"explanations": {"batch_tokens": 160}})
    expected = predictor.explain({"body": TEXT}).payload
    rows = passes(predictor, monkeypatch, most=3)
    found = predictor.explain({"body": TEXT}).payload
    assert 1 < max(rows) <= 3
    assert predictor.metrics.totals["out_of_memory"] > 0
    shares, others = ([token["attribution"] for token in one["tokens"]] for one in (expected, found))
    assert shares == pytest.approx(others, abs=1e-4)


def test_out_of_memory_for_good_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = explained(tmp_path, "sequence_classification", {"explanations": {"batch_tokens": 1}})
    passes(predictor, monkeypatch, most=0)
    reply = predictor.explain({"body": TEXT})
    assert (reply.status, reply.payload["error"]["type"]) == (503, "overloaded")
    assert predictor.metrics.totals["out_of_memory"] == 1

    def full(*_: torch.Tensor) -> None:
        raise MemoryError

    monkeypatch.setattr(predictor.explainer, "_run", full)
    assert refused(predictor, TEXT)["type"] == "overloaded"
    assert predictor.metrics.totals["errors.overloaded"] == 2


class Time:
    """A clock that passes by itself: ``second`` more at each look."""

    def __init__(self, second: float) -> None:
        self._second = second
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += self._second
        return self._now


def test_what_takes_too_long_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"explanations": {"batch_tokens": 1, "seconds": 30}}
    predictor = explained(tmp_path, "sequence_classification", config)
    rows = passes(predictor, monkeypatch)
    monkeypatch.setattr(explain, "time", Time(1.0))
    error = predictor._explained(predictor._decoder.decode({"body": TEXT}).items[0], 1000.0)
    assert error.type == "too_large"
    assert 5 <= len(rows) <= 10
    monkeypatch.setattr(explain, "time", Time(10.0))
    assert predictor._explained(predictor._decoder.decode({"body": TEXT}).items[0], 45.0).type == "too_large"
    monkeypatch.setattr(explain, "time", Time(0.1))
    assert "tokens" in predictor._explained(predictor._decoder.decode({"body": TEXT}).items[0], 1000.0)


def test_a_list_shares_one_deadline(tmp_path: Path) -> None:
    predictor = explained(tmp_path, "sequence_classification")
    reply = predictor.explain({"body": [TEXT, TEXT]}, deadline=time.monotonic() - 1)
    assert [answer["error"]["type"] for answer in reply.payload] == ["overloaded"] * 2
    assert predictor.explanation_deadline() > time.monotonic()


def test_what_others_have_left_no_time_for_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "time", Time(1.0))
    clock = Clock(10, seconds=100, deadline=50.0)
    for _ in range(10):
        clock.begin(1)
    clock = Clock(10, seconds=100, deadline=18.0)
    clock.begin(1)
    with pytest.raises(RequestError) as caught:
        clock.begin(1)
    assert caught.value.type == "overloaded"


def test_lists_and_bad_requests(tmp_path: Path) -> None:
    predictor = explained(tmp_path, "sequence_classification")
    first, second = predictor.explain({"body": [TEXT, ""]}).payload
    assert "tokens" in first
    assert second["error"]["type"] == "empty"
    assert predictor.explain({"body": b"{"}).status == 400
    reply = predictor.explain({"body": [TEXT, ""]}, html=True)
    assert reply.content_type.startswith("text/html")
    assert "text is empty" in reply.payload


def test_without_the_twin_there_are_none(classifier: Predictor, tmp_path: Path) -> None:
    classifier.explainer = Explainer(tmp_path, classifier.facts, classifier.task, CPU, Metrics())
    error = refused(classifier, TEXT)
    assert error["type"] == "unsupported"
    assert "captum_explanation" in error["message"]
    classifier.explainer = None
    assert classifier.explain({"body": TEXT}).status == 422


def test_without_captum_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = explained(tmp_path, "sequence_classification")
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    error = refused(predictor, TEXT)
    assert error["type"] == "unsupported"
    assert "captum" in error["message"]


def test_a_page_escapes_what_it_shows() -> None:
    token = {"text": 0, "token": "<i>", "start": 0, "end": 3, "attribution": -0.5}
    shown = page([{"target": "<b>", "delta": 0.0, "tokens": [token, {**token, "token": "x", "start": 3, "end": 4}]}])
    assert "&lt;i&gt;</span><span" in shown
    assert "<i>" not in shown
    assert "&lt;b&gt;" in shown
