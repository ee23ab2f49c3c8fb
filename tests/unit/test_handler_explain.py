"""Explanations: the shares add up to what they explain; targets; pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from handler import explain
from handler.config import SetupConfig
from handler.errors import RequestError
from handler.explain import Explainer
from handler.html import page
from handler.original import OriginalModel
from handler.predictor import Predictor
from handler.tokenizer import Tokenizer
from tests.checkpoints import make_checkpoint
from tests.unit.handler_fakes import facts

CPU = torch.device("cpu")
TEXT = "the parcel has not arrived & nobody answers"


def explained(tmp_path: Path, task: str, **changes: Any) -> Predictor:
    """A predictor of kind ori on a small random checkpoint, with explanations."""
    from transformers import AutoTokenizer

    checkpoint = make_checkpoint(tmp_path / "checkpoint", "bert", task)
    AutoTokenizer.from_pretrained(checkpoint).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    own = facts(task, mode="ori", max_positions=64, **changes)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64, uses_segments=True)
    made = Predictor(own, SetupConfig(model_name="x", stride=8), tokenizer, OriginalModel(checkpoint, own, CPU))
    made.explainer = Explainer(tmp_path, own, made.task, CPU)
    return made


def test_shares_and_delta_add_up_to_the_difference_from_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = explained(tmp_path, "sequence_classification")
    deltas = []
    for steps in (20, 400):
        monkeypatch.setattr(explain, "STEPS", steps)
        explanation = predictor.explain({"body": {"text": TEXT, "target": 1}}).payload
        deltas.append(explanation["delta"])
    encoding = predictor.task.tokenizer.backend.encode(TEXT)
    special = torch.tensor(encoding.special_tokens_mask, dtype=torch.bool)
    ids = torch.tensor([encoding.ids])
    module = predictor.explainer.module  # type: ignore[union-attr]
    with torch.no_grad():
        whole = module(input_ids=ids).logits - module(input_ids=torch.where(special, ids, 0)).logits
    shares = sum(token["attribution"] for token in explanation["tokens"])
    assert shares == pytest.approx(float(whole[0, 1]), abs=0.02 * float(whole.abs().max()))
    assert abs(deltas[1]) < abs(deltas[0]) + 1e-4


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


def test_token_classification_explains_its_surest_entity(tmp_path: Path) -> None:
    predictor = explained(tmp_path, "token_classification", labels=["O", "B-X", "I-X"])
    assert predictor.explain({"body": TEXT}).payload["target"] in ("B-X", "I-X")


def test_question_answering_explains_start_and_end(tmp_path: Path) -> None:
    predictor = explained(tmp_path, "question_answering")
    body = {"question": "where is my order", "context": f"{TEXT} " * 20}
    explanation = predictor.explain({"body": body}).payload
    assert set(explanation) == {"start", "end"}
    texts = (body["question"], body["context"])
    for side in explanation.values():
        assert all(texts[t["text"]][t["start"] : t["end"]] == t["token"] for t in side["tokens"])
    json.dumps(explanation, allow_nan=False)


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
    classifier.explainer = Explainer(tmp_path, classifier.facts, classifier.task, CPU)
    with pytest.raises(RequestError, match="captum_explanation"):
        raise classifier._explained(classifier._decoder.decode({"body": TEXT}).items[0])
    classifier.explainer = None
    assert classifier.explain({"body": TEXT}).status == 422


def test_a_page_escapes_what_it_shows() -> None:
    token = {"text": 0, "token": "<i>", "start": 0, "end": 3, "attribution": -0.5}
    shown = page([{"target": "<b>", "delta": 0.0, "tokens": [token, {**token, "token": "x", "start": 3, "end": 4}]}])
    assert "&lt;i&gt;</span><span" in shown
    assert "<i>" not in shown
    assert "&lt;b&gt;" in shown
