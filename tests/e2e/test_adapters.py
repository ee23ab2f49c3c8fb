"""One archive of two adapters over HTTP: each request is answered by the one that it names, whatever it waits with."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import torch
import transformers

from deploy.server import Server
from handler.client import Client, ServerError
from tests.adapters import make_adapter
from tests.checkpoints import TEXTS, make_checkpoint
from tests.e2e.conftest import registered

LABELS = {"tickets": 4, "reviews": 2}
"""Heads of their own, so that an answer of the wrong one shows in its labels alone."""


@dataclass
class Served:
    client: Client
    server: Server
    expected: dict[str, list[list[float]]]
    """By adapter, the merged model's probabilities of each text."""


@pytest.fixture(scope="module")
def served(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("adapters")
    base = make_checkpoint(folder / "base", "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    expected = {}
    for seed, (name, labels) in enumerate(LABELS.items()):
        merged = make_adapter(base, folder / name, labels=labels, seed=seed)
        with torch.inference_mode():
            expected[name] = [merged(**tokenizer(t, return_tensors="pt")).logits.softmax(-1)[0].tolist() for t in TEXTS]
    # A delay in which requests of both meet in a batch.
    config: dict[str, Any] = {"model_name": str(base), "max_batch_delay": 20}
    config["adapters"] = {name: str(folder / name) for name in LABELS}
    with registered(server, {"several": config}, folder) as client:
        yield Served(client, server, expected)


def scores(answer: dict[str, Any]) -> list[float]:
    by_label = {item["label"]: item["score"] for item in answer["labels"]}
    return [by_label[f"LABEL_{row}"] for row in range(len(by_label))]


def test_a_list_of_both(served: Served) -> None:
    names = ["reviews", "tickets", "tickets", "reviews", "tickets"]
    rows = [{"text": text, "adapter": name, "top_k": 9} for text, name in zip(TEXTS, names, strict=True)]
    for place, (answer, name) in enumerate(zip(served.client.predict("several", rows), names, strict=True)):
        assert scores(answer) == pytest.approx(served.expected[name][place], abs=1e-4)


def test_a_request_that_names_none_has_the_first(served: Served) -> None:
    for place, answer in enumerate(served.client.predict("several", TEXTS, top_k=9)):
        assert scores(answer) == pytest.approx(served.expected["tickets"][place], abs=1e-4)


def test_an_unknown_one_is_refused_in_one_line_and_costs_no_other_its_answer(served: Served) -> None:
    with pytest.raises(ServerError) as caught:
        served.client.predict("several", TEXTS[0], adapter="praise")
    assert (caught.value.status, caught.value.field) == (422, "adapter")
    assert caught.value.message == "this archive has no such adapter; its adapters are tickets, reviews"
    rows = [{"text": TEXTS[0], "adapter": "praise"}, {"text": TEXTS[1], "adapter": "reviews"}]
    wrong, right = served.client.predict("several", rows)
    assert wrong["error"]["field"] == "adapter"
    assert right["label"] in ("LABEL_0", "LABEL_1")


def test_an_archive_without_adapters_says_so(served: Served) -> None:
    with pytest.raises(ServerError) as caught:
        served.client.predict("roberta_like", TEXTS[0], adapter="tickets")
    assert (caught.value.status, caught.value.field) == (422, "adapter")
    assert "it has none to choose from" in caught.value.message


def test_mixed_traffic(served: Served) -> None:
    """Requests for both, for none and for one that there is not, side by side, so that TorchServe batches them."""
    names = ["tickets", "reviews", None, "praise"]
    asked = [(place % len(TEXTS), names[place % len(names)]) for place in range(120)]

    def ask(place: int, name: str | None) -> requests.Response:
        body: dict[str, Any] = {"text": TEXTS[place], "top_k": 9} | ({"adapter": name} if name else {})
        url = f"{served.server.url}/predictions/several"
        return requests.post(url, json=body, headers=served.server.headers(), timeout=60)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: ask(*one), asked))
    for (place, name), answer in zip(asked, answers, strict=True):
        if name == "praise":
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, "adapter")
        else:
            assert answer.status_code == 200
            assert scores(answer.json()) == pytest.approx(served.expected[name or "tickets"][place], abs=1e-4)
