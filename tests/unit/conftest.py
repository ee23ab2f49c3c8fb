"""Predictors around fakes, shared by the handler's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from handler.predictor import Predictor
from tests.unit.handler_fakes import PooledLogits, TokenOutputs, predictor


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder: Path = tmp_path_factory.mktemp("classifier")
    return predictor(folder, PooledLogits(3), "sequence_classification", labels=["red", "green", "blue"])


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return predictor(tmp_path_factory.mktemp("reader"), TokenOutputs(2), "question_answering")
