"""Predictors around fakes, an application around them, a checkpoint too small to wait for: shared by several tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from handler.predictor import Predictor
from tests.unit.handler_fakes import VOCABULARY, PooledLogits, TokenOutputs, predictor, save_tokenizer

if TYPE_CHECKING:
    from starlette.testclient import TestClient


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder: Path = tmp_path_factory.mktemp("classifier")
    return predictor(folder, PooledLogits(3), "sequence_classification", labels=["red", "green", "blue"])


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("reader"), TokenOutputs(2), "question_answering")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A classifier's folder, with random weights."""
    import transformers

    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(**sizes, vocab_size=len(VOCABULARY), max_position_embeddings=64)
    folder = tmp_path / "checkpoint"
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    """What :func:`app` serves, by name."""
    from tests.unit.server_fakes import predictors

    return predictors(tmp_path_factory.mktemp("models"), limits={"max_inputs": 8, "max_body_bytes": 20_000})


@pytest.fixture(scope="module")
def app(models: dict[str, Predictor]) -> Iterator[TestClient]:
    """A client of the application around fakes."""
    from tests.unit.server_fakes import client

    with client(models) as opened:
        yield opened
