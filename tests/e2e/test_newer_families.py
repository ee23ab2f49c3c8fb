"""A ModernBERT classifier and a DeBERTa tagger over HTTP, beside transformers' pipelines on the same folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from deploy.server import Server
from handler.client import Client
from tests.checkpoints import TEXTS, make_checkpoint
from tests.e2e.conftest import registered

LONG = " ".join(TEXTS)
"""Longer than the window of ModernBERT's local layers and than DeBERTa's exact distances."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        "modern": make_checkpoint(root / "modern", "modernbert"),
        "tagger_v3": make_checkpoint(root / "tagger", "deberta-v2", "token_classification"),
    }


@pytest.fixture(scope="module")
def client(server: Server, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of the running server, with this module's archives registered in it."""
    configs = {name: {"model_name": str(folder)} for name, folder in folders.items()}
    with registered(server, configs, tmp_path_factory.mktemp("configs")) as made:
        yield made


def test_a_modernbert_classifier(client: Client, folders: dict[str, Path]) -> None:
    run = transformers.pipeline("text-classification", str(folders["modern"]), top_k=None, device="cpu")
    texts = [*TEXTS, LONG]
    for answer, theirs in zip(client.predict("modern", texts, top_k=3), run(texts), strict=True):
        ours = {label["label"]: label["score"] for label in answer["labels"]}
        assert ours == pytest.approx({label["label"]: label["score"] for label in theirs}, abs=1e-4)


def test_a_deberta_tagger(client: Client, folders: dict[str, Path]) -> None:
    run = transformers.pipeline("token-classification", str(folders["tagger_v3"]), device="cpu")
    for text in (*TEXTS, LONG):
        ours = client.predict("tagger_v3", text, aggregation="none")["entities"]
        theirs = run(text)
        assert [(e["label"], e["start"], e["end"]) for e in ours] == [
            (e["entity"], e["start"], e["end"]) for e in theirs
        ]
        assert [e["score"] for e in ours] == pytest.approx([float(e["score"]) for e in theirs], abs=1e-4)
