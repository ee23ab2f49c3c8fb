"""Every other task over HTTP, built from small random checkpoints of several families; and explanations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from deploy.server import Server
from handler.canary import close
from handler.client import Client, ServerError
from tests.checkpoints import make_checkpoint
from tests.e2e.conftest import run

TEXT = "the parcel has not arrived — 🙂 nobody\r\nanswers the phone"
ARCHIVES = {
    "tagger": ("roberta", "token_classification", {}),
    "reader": ("bert", "question_answering", {}),
    "embedder": ("bert", "embedding", {}),
    "ranker": ("electra", "sequence_classification", {"num_labels": 1}),
    "filler": ("xlm-roberta", "fill_mask", {}),
}
EXPLAINED = ("tagger", "reader")


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of the running server, with this module's archives registered in it."""
    for name, (family, task, sizes) in ARCHIVES.items():
        checkpoint = make_checkpoint(tmp_path_factory.mktemp(name) / name, family, task, **sizes)
        mode = "rerank" if name == "ranker" else task
        config = {"model_name": str(checkpoint), "task": mode, "name": name, "captum_explanation": name in EXPLAINED}
        path: Path = checkpoint.parent / f"{name}.json"
        path.write_text(json.dumps(config))
        run("builder", "archive", str(path), "--output", str(server.store), "--device", "cpu")
        settings: dict[str, str | int] = {"url": f"{name}.mar", "initial_workers": 1, "synchronous": "true"}
        url = f"http://127.0.0.1:{server.ports[1]}/models"
        answer = requests.post(url, params=settings, headers=server.headers("management"), timeout=120)
        assert answer.ok, answer.text
    with Client(server.url, key_file=server.folder / "key_file.json", timeout=60) as made:
        yield made
    for name in ARCHIVES:
        requests.delete(f"{url}/{name}", headers=server.headers("management"), timeout=60)


def test_token_classification(client: Client) -> None:
    answer = client.predict("tagger", TEXT, aggregation="none")
    assert answer["entities"]
    for entity in answer["entities"]:
        assert TEXT[entity["start"] : entity["end"]] == entity["word"]


def test_embedding(client: Client) -> None:
    answers = client.predict("embedder", [TEXT, "where is my order"], normalize=True)
    norms = [math.sqrt(sum(x * x for x in answer["embedding"])) for answer in answers]
    assert norms == pytest.approx([1, 1], rel=1e-5)
    assert len(answers[0]["embedding"]) == 64


def test_rerank(client: Client) -> None:
    answer = client.predict("ranker", {"query": "where is my parcel", "texts": [TEXT, "a chair", "password"]})
    scores = [result["score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]


def test_fill_mask(client: Client) -> None:
    answer = client.predict("filler", "the parcel has not <mask>", top_k=3)
    assert [len(candidates) for candidates in answer["masks"]] == [3]
    assert answer["masks"][0][0]["sequence"].startswith("the parcel has not ")


def test_lists_keep_their_order_and_errors_their_place(client: Client) -> None:
    answers = client.predict("embedder", ["where", "", "phone"])
    assert close(answers[0], client.predict("embedder", "where"), 1e-4)
    assert answers[1]["error"]["type"] == "empty"
    assert list(client.predict_many("embedder", ["a", "b", "c"], size=2))[2].keys() == {"embedding"}


def test_the_client_raises_what_the_server_says(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.predict("ranker", {"query": "where", "texts": "no list"})
    assert (caught.value.status, caught.value.type, caught.value.field) == (422, "invalid_request", "texts")
    with pytest.raises(ServerError) as caught:
        client.predict("absent", "text")
    assert caught.value.status == 404


def test_explanations_as_figures_and_as_a_page(client: Client) -> None:
    explanation = client.explain("tagger", {"text": TEXT})
    assert explanation["target"].startswith("LABEL_")
    assert math.isfinite(explanation["delta"])
    for token in explanation["tokens"]:
        assert TEXT[token["start"] : token["end"]] == token["token"]
    page = client.explain_as_page("tagger", {"text": "<b>bold</b>"})
    assert page.startswith("<!doctype html>")
    assert "<b>" not in page


def test_an_answers_start_and_end_are_explained(client: Client) -> None:
    question = {"question": "where is my order", "context": TEXT}
    explanation = client.explain("reader", question)
    assert set(explanation) == {"start", "end"}
    for side, explained in explanation.items():
        assert explained["target"] == side
        assert math.isfinite(explained["delta"])
        for token in explained["tokens"]:
            text = (question["question"], TEXT)[token["text"]]
            assert text[token["start"] : token["end"]] == token["token"]
    with pytest.raises(ServerError) as caught:
        client.explain("reader", [question] * 5)
    assert (caught.value.status, caught.value.type) == (413, "too_many")


@pytest.mark.parametrize(
    ("path", "body"),
    [("tagger/1.0/html", {"text": TEXT}), ("tagger", {"inputs": {"text": TEXT}, "parameters": {"format": "html"}})],
)
def test_a_page_by_its_address_or_by_a_parameter(
    client: Client, server: Server, path: str, body: dict[str, object]
) -> None:
    answer = requests.post(f"{server.url}/explanations/{path}", json=body, headers=server.headers(), timeout=60)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text.startswith("<!doctype html>")


def test_an_archive_without_explanations_says_so(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.explain("embedder", "text")
    assert (caught.value.status, caught.value.type) == (422, "unsupported")
