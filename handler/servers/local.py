"""Models of this process."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from handler.config import NAME_PATTERN, ConfigError
from handler.draining import end_process
from handler.servers.batching import Turns
from handler.servers.figures import Figures
from handler.servers.model import Card, ServedModel
from handler.wire import Asked, HttpReply

logger = logging.getLogger(__name__)


def named(archives: Iterable[str]) -> dict[str, Path]:
    """``PATH`` or ``NAME=PATH`` each; without a name it is the file's. Raises ConfigError in one line."""
    found: dict[str, Path] = {}
    for given in archives:
        name, equals, path = given.partition("=")
        if not equals:
            name, path = Path(given).stem if given.endswith(".mar") else Path(given).name, given
        if not NAME_PATTERN.match(name):
            raise ConfigError(f"{name!r} is no model's name; letters, digits, . _ - are (NAME=PATH gives one)")
        if name in found:
            raise ConfigError(f"two archives are called {name}; NAME=PATH gives another name")
        found[name] = Path(path)
    if not found:
        raise ConfigError("name at least one archive")
    return found


def parser_of(program: str, description: str | None, port: int) -> argparse.ArgumentParser:
    """What every server's command line begins with: archives as :func:`named` takes them, and an address."""
    parser = argparse.ArgumentParser(
        prog=f"python -m handler.servers.{program}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("archives", nargs="+", metavar="[NAME=]PATH", help="archives; NAME is what requests call one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=port)
    return parser


class LocalModels:
    """See handler.servers.door.Models."""

    def __init__(self, models: Iterable[ServedModel], cards: Mapping[str, Card]) -> None:
        self.models = {model.name: model for model in models}
        self.cards = cards

    @classmethod
    def open(
        cls,
        archives: Mapping[str, Path],
        figures: Figures,
        *,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        capacity: int = 1000,
    ) -> LocalModels:
        """All archives in this process, which divide its threads. See ServedModel.open."""
        cards = {name: Card.read(name, path) for name, path in archives.items()}
        turns = Turns()
        models: list[ServedModel] = []
        settings = dict(settings or {})
        for name, path in archives.items():
            model = ServedModel.open(
                name, path, device=device, settings=settings, capacity=capacity, turns=turns,
                observe=figures.stages(name), lost=_lost,
            )  # fmt: skip
            figures.watch(model)
            models.append(model)
            # The process keeps to the cores that the first model's settings have claimed.
            settings["handler"] = {**settings.get("handler", {}), "pin": False}
        return cls(models, cards)

    async def answer(self, name: str, protocol: str, asked: Asked) -> HttpReply:
        """See ServedModel."""
        return await self.models[name].answer(protocol, asked)

    async def explain(self, name: str, asked: Asked) -> HttpReply:
        """See ServedModel."""
        return await self.models[name].explain(asked)

    async def describe(self, name: str) -> dict[str, Any]:
        """See ServedModel."""
        return await self.models[name].describe()

    async def healthy(self) -> bool:
        """Whether every model can answer."""
        return not any(model.lost for model in self.models.values())

    def close(self) -> None:
        """Answer what waits, end the threads."""
        for model in self.models.values():
            model.close()


def _lost() -> None:
    logger.error("the device has failed; this process ends, so that another is started")
    end_process()
