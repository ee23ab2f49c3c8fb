"""Models around fakes behind the application, in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from handler.predictor import Predictor
from handler.servers.app import application
from handler.servers.figures import Figures
from handler.servers.local import LocalModels
from handler.servers.model import Card, ServedModel
from handler.servers.running import Running
from tests.unit.handler_fakes import PooledLogits, TokenOutputs, predictor

LABELS = ["red", "green", "blue"]


def predictors(folder: Path, **config: Any) -> dict[str, Predictor]:
    """A small model of each task that has a protocol of its own, and a reader."""
    made = {}
    for name, task, module, facts in (
        ("colours", "sequence_classification", PooledLogits(3), {"labels": LABELS}),
        ("vectors", "embedding", PooledLogits(8), {"normalize": True}),
        ("ranks", "rerank", PooledLogits(1), {}),
        ("reader", "question_answering", TokenOutputs(2), {}),
    ):
        (folder / name).mkdir(parents=True)
        made[name] = predictor(folder / name, module, task, dict(config), **facts)
    return made


def card(name: str, model: Predictor) -> Card:
    fields = {"sequence_classification": ("text",), "question_answering": ("question", "context")}
    task = model.facts.task
    return Card(
        name,
        task,
        "pytorch_torchscript",
        fields.get(task, ("text",)),
        1_700_000_000,
        model.config.limits.max_body_bytes,
    )


@contextmanager
def client(
    models: dict[str, Predictor], *, keys: tuple[str, ...] = (), running: Running | None = None, capacity: int = 1000
) -> Iterator[TestClient]:
    """The application's client; its models end with it."""
    figures = Figures()
    served = [
        ServedModel(name, model, capacity=capacity, observe=figures.stages(name)) for name, model in models.items()
    ]
    for model in served:
        figures.watch(model)
    local = LocalModels(served, {name: card(name, model) for name, model in models.items()})
    app = application(local, keys=keys, running=running or Running(), figures=figures, at_end=local.close)
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened
