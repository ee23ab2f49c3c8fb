"""One archive's model behind a server: protocols in front, the batcher around the engine behind."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from handler.archive import ArchiveError, ArchiveFacts
from handler.config import SetupConfig
from handler.decode import Decoder
from handler.doctor import extracted
from handler.engine import choose_gpu
from handler.errors import RequestError, internal_error
from handler.integrity import FACTS
from handler.predictor import Predictor
from handler.servers.batching import Batcher, Observe, Turns
from handler.tasks import TASKS
from handler.wire import PROTOCOLS, Asked, HttpReply, Outcome, View
from handler.wire.base import encoded
from handler.wire.own import row_of

logger = logging.getLogger(__name__)
PAGE = "text/html"


@dataclass(frozen=True, slots=True)
class Card:
    """What a server says of a model without asking it. ``created``: the archive, in seconds since 1970. ``fields``:
    names of KServe's tensors, columns of a request's texts, or one whose strings are inputs. ``max_body``: bytes of a
    request.
    """

    name: str
    task: str
    platform: str
    fields: tuple[str, ...]
    created: int
    max_body: int

    @classmethod
    def read(cls, name: str, path: Path) -> Card:
        """Of a ``.mar`` or the folder of an unpacked one. Raises ArchiveError or ConfigError in one line."""
        try:
            with tempfile.TemporaryDirectory() as scratch:
                folder = path if path.is_dir() else Path(scratch)
                if not path.is_dir():
                    with zipfile.ZipFile(path) as packed:
                        for member in (FACTS, "setup_config.json"):
                            if member in packed.namelist():
                                packed.extract(member, folder)
                facts = ArchiveFacts.load(folder / FACTS)
                config = SetupConfig.load(folder / "setup_config.json")
            created = int(path.stat().st_mtime)
        except FileNotFoundError as error:
            raise ArchiveError(f"there is no archive {str(path)!r}") from error
        except (OSError, zipfile.BadZipFile) as error:
            raise ArchiveError(f"{path.name} cannot be read ({error})") from error
        platform, most = f"pytorch_{facts.model.format}", config.limits.max_body_bytes
        return cls(name, facts.task, platform, _columns(TASKS[facts.task].request), created, most)


def _columns(schema: type[BaseModel]) -> tuple[str, ...]:
    required = {key: info.annotation for key, info in schema.model_fields.items() if info.is_required()}
    return tuple(required) if required and all(kind is str for kind in required.values()) else ("inputs",)


class ServedModel:
    """Answers the requests of one event loop. For ``turns``, ``observe``, ``lost`` and ``capacity`` see Batcher."""

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        *,
        capacity: int = 1000,
        turns: Turns | None = None,
        observe: Observe = lambda stage, seconds: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.predictor = predictor
        engine, config = predictor.engine, predictor.config
        decoder = Decoder(engine.task.request, config.limits, config.allow_overrides)
        self._view = View(name, engine.facts, config, decoder, engine.task.tokenizer)
        self.batcher = Batcher(engine, capacity=capacity, turns=turns, observe=observe, lost=lost)
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(
        cls,
        name: str,
        path: Path,
        *,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ServedModel:
        """From ``NAME.mar`` or the folder of an unpacked one; warmed up and asked a known request.

        ``device``: as Engine.open takes it; ``settings``: as Engine.load does; ``options``: of the class. Raises
        ArchiveError or ConfigError in one line.
        """
        if not path.exists():
            raise ArchiveError(f"there is no archive {str(path)!r}")
        unpacked = None if path.is_dir() else tempfile.TemporaryDirectory(prefix="efft-")
        try:
            folder = extracted(path, Path(unpacked.name)) if unpacked else path
            model = cls(name, Predictor.load(folder, choose_gpu(folder, device), settings), **options)
        except BaseException:
            if unpacked:
                unpacked.cleanup()
            raise
        model._unpacked = unpacked
        return model

    def close(self) -> None:
        """Answer what waits, end the threads, remove what was unpacked."""
        self.batcher.close()
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    @property
    def lost(self) -> bool:
        """Whether the device has failed for good, so that only a new process can answer again."""
        return self.predictor.lost

    async def answer(self, protocol: str, asked: Asked) -> HttpReply:
        """The reply to a request in one of PROTOCOLS, whatever it holds."""
        wire = PROTOCOLS[protocol]
        try:
            call = wire.read(asked, self._view)
            outcomes = await self.batcher.answers(call.items, self.predictor.deadline())
            self._count(outcomes)
            return self._sent(wire.write(asked, call, outcomes, self._view))
        except RequestError as error:
            return wire.refusal(error)
        except Exception as error:
            return wire.refusal(internal_error(error))

    async def explain(self, asked: Asked) -> HttpReply:
        """Explanations, in the project's own protocol: meanwhile the model answers nothing else."""
        html = asked.headers.get("accept", "").startswith(PAGE)
        wire = PROTOCOLS["own"]
        try:
            row, headers = row_of(asked)
            reply = await asyncio.to_thread(self._explained, row, headers, html)
            if reply.status != 200:
                return wire.refusal(RequestError(**reply.payload["error"]))
            if isinstance(reply.payload, str):
                return HttpReply(200, reply.payload.encode(), reply.content_type)
            return self._sent(HttpReply(200, encoded(reply.payload)))
        except RequestError as error:
            return wire.refusal(error)
        except Exception as error:
            return wire.refusal(internal_error(error))

    def _explained(self, row: dict[str, Any], headers: dict[str, Any], html: bool) -> Any:
        with self.batcher.alone():
            return self.predictor.explain(row, headers.get("content-type"), html=html, headers=headers)

    async def describe(self) -> dict[str, Any]:
        """What is served, how much it has done, and the outcome of a known request made now."""
        return await asyncio.to_thread(self._described)

    def _described(self) -> dict[str, Any]:
        with self.batcher.alone():
            return {**self.predictor.describe(), "name": self.name}

    def _count(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome.answer, RequestError):
                self.predictor.metrics.add_error(outcome.answer.type)

    def _sent(self, reply: HttpReply) -> HttpReply:
        """The reply, unless it is larger than the config allows. Raises RequestError."""
        limit = self.predictor.config.limits.max_answer_bytes
        if len(reply.body) > limit:
            message = f"the answer has {len(reply.body)} bytes, at most {limit} are sent; ask for less at a time"
            raise RequestError("too_large", message)
        return reply
