"""What the soak judges: answers by their form, memory by lives."""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmarks import soak
from benchmarks.soak import Life, case, good, judge, watch, well_formed

FLAT = [100.0] * 60


def lives(**mib: list[float]) -> list[Life]:
    return [Life(name.rstrip("0123456789"), pid, own) for pid, (name, own) in enumerate(mib.items())]


def figures(own: list[Life], **changed: Any) -> dict[str, Any]:
    return {"answers": {"right": 9}, "killed": [{"second": 1, "model": "document_qa"}], **judge(own, 600), **changed}


def test_flat_memory_and_right_answers_are_good() -> None:
    own = lives(java=FLAT, ticket_routing=FLAT, document_qa=FLAT, document_qa2=FLAT[:3])
    assert good(figures(own))
    assert [row["judged"] for row in figures(own)["lives"]] == [True, True, True, False]


@pytest.mark.parametrize("name", ["java", "ticket_routing", "document_qa"])
def test_growth_within_a_life_is_seen_and_the_warm_up_is_not(name: str) -> None:
    warming = [50.0 + n for n in range(15)] + [100.0] * 45
    climbing = [100 + n / 10 for n in range(60)]
    assert good(figures(lives(**{"java": FLAT, "ticket_routing": FLAT, "document_qa": FLAT, name: warming})))
    assert not good(figures(lives(**{"java": FLAT, "ticket_routing": FLAT, "document_qa": FLAT, name: climbing})))


def test_growth_from_life_to_life_is_seen() -> None:
    own = lives(java=FLAT, ticket_routing=FLAT, document_qa=FLAT, document_qa2=[101.0] * 60, document_qa3=[103.0] * 60)
    assert judge(own, 600)["growth_between_lives"] == {"document_qa": 0.03}
    assert not good(figures(own))


@pytest.mark.parametrize(
    "changed",
    [{"answers": {"right": 9, "wrong": 1}}, {"answers": {}}, {"killed": [{"second": 1, "model": None}]}],
)
def test_what_is_not_good(changed: dict[str, Any]) -> None:
    assert not good(figures(lives(java=FLAT, ticket_routing=FLAT, document_qa=FLAT), **changed))


def test_nothing_judged_is_not_good() -> None:
    assert not good(figures(lives(java=FLAT, ticket_routing=FLAT[:5], document_qa=FLAT)))


def test_cases_are_mixed_and_the_same_for_a_seed() -> None:
    cases = [case(random.Random(seed)) for seed in range(300)]
    assert {model for model, _, _ in cases} == set(soak.MODELS)
    assert {type(payload) for _, payload, _ in cases} == {dict, list}
    assert {tuple(options) for _, _, options in cases} == {(), ("top_k",), ("n_best",)}
    assert cases == [case(random.Random(seed)) for seed in range(300)]


CONTEXT = {"question": "who", "context": "the harbour"}


@pytest.mark.parametrize(
    ("payload", "answer", "right"),
    [
        ({"text": "a"}, {"label": "x", "score": 0.5}, True),
        ({"text": "a"}, [{"label": "x", "score": 0.5}], True),
        ({"text": "a"}, {"label": "x", "score": 1.5}, False),
        ({"text": "a"}, {"label": None, "score": 0.5}, False),
        ({"text": "a"}, {"error": {}}, False),
        (["a", "b"], [{"label": "x", "score": 0.5}] * 2, True),
        (["a", "b"], [{"label": "x", "score": 0.5}], False),
        (["a", "b"], [{"label": "x", "score": 0.5}, {"error": {}}], False),
        (CONTEXT, {"answer": "harbour", "start": 4, "end": 11, "score": 0.1}, True),
        (CONTEXT, {"answer": "harbor", "start": 4, "end": 11, "score": 0.1}, False),
    ],
)
def test_answers_by_their_form(payload: Any, answer: Any, right: bool) -> None:
    assert well_formed(payload, answer) is right


def test_watching_reads_and_kills_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "INTERVAL", 0.05)
    readings: list[int] = []
    killed = watch(1.0, 0.3, lambda: readings.append(1), lambda turn: soak.MODELS[turn % 2])
    assert [one["model"] for one in killed][:2] == list(soak.MODELS)
    assert len(readings) >= 3
