"""What every request passes on its way to a model: key, size, draining; and what it becomes when it fails."""

from __future__ import annotations

import asyncio
import hmac
import inspect
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from handler.errors import RequestError, internal_error
from handler.servers.figures import Figures
from handler.servers.model import Card
from handler.servers.running import Running
from handler.wire import PROTOCOLS, Asked, HttpReply, WireError
from handler.wire.base import encoded, json_body

ATTENTION = 0.25
"""Seconds after which a request that still waits is looked after, in case its client goes away."""
CLIENT_GONE = 499
"""What nginx logs for such a request; nobody reads it."""
Answering = Callable[[], Coroutine[Any, Any, HttpReply]]


class Models(Protocol):
    """Where the models are: in this process, or in Ray's. ``cards``: by name."""

    cards: Mapping[str, Card]

    async def answer(self, name: str, protocol: str, asked: Asked) -> HttpReply:
        """See ServedModel."""

    async def explain(self, name: str, asked: Asked) -> HttpReply:
        """See ServedModel."""

    async def describe(self, name: str) -> dict[str, Any]:
        """See ServedModel."""

    async def healthy(self) -> bool:
        """Whether every model can answer."""


def protocol_of(path: str) -> str:
    """The protocol whose errors an address speaks."""
    if path.endswith("/rerank"):
        return "rerank"
    if path.startswith("/v2"):
        return "kserve_v2"
    if path.startswith("/v1/models/") and ":" in path:
        return "kserve_v1"
    return "openai" if path.startswith("/v1") else "own"


class Door:
    """In front of ``models``.

    ``keys``: any of which a client must bring as bearer token; empty: none is asked for.
    """

    def __init__(self, models: Models, keys: tuple[str, ...], running: Running, figures: Figures) -> None:
        self.models = models
        self._keys = tuple(key.encode() for key in keys)
        self._running = running
        self._figures = figures

    async def pass_on(self, request: Request, name: str | None, protocol: str) -> Response:
        """To the model of this name; None: the one that the body names."""
        return await self._guarded(request, protocol, lambda: self._predicted(request, name, protocol))

    async def explained(self, request: Request, name: str) -> Response:
        """An explanation of the model of this name."""
        return await self._guarded(request, "own", lambda: self._explained(request, name))

    async def told(self, request: Request, telling: Callable[[], Any]) -> Response:
        """What a server says of itself or of a model; ``telling`` may be a coroutine's function."""
        return await self._guarded(request, protocol_of(request.url.path), lambda: _as_reply(telling))

    def refusal(self, path: str, error: RequestError) -> Response:
        """An error of the address's protocol."""
        return response_of(PROTOCOLS[protocol_of(path)].refusal(error))

    async def _guarded(self, request: Request, protocol: str, answering: Answering) -> Response:
        with self._running.request() as stopping, self._figures.request(protocol) as note:
            try:
                self._check_key(request)
                if stopping:
                    raise RequestError("overloaded", "the server is stopping; ask again")
                reply = await answering()
            except ClientDisconnect:
                reply = HttpReply(CLIENT_GONE, b"")
            except RequestError as error:
                reply = PROTOCOLS[protocol].refusal(error)
            except Exception as error:
                reply = PROTOCOLS[protocol].refusal(internal_error(error))
            note(reply.status)
        return response_of(reply)

    def _check_key(self, request: Request) -> None:
        if not self._keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        brought = given.strip().encode()
        # All are compared, so that the time tells nothing of how many there are.
        fitting = sum(hmac.compare_digest(brought, key) for key in self._keys)
        if scheme.lower() != "bearer" or not fitting:
            message = "a key is missing or wrong; send it as Authorization: Bearer KEY"
            raise WireError(HTTPStatus.UNAUTHORIZED, "invalid_api_key", message)

    async def _predicted(self, request: Request, name: str | None, protocol: str) -> HttpReply:
        if name is not None:
            card = self.card(name)
            asked = await _asked(request, card.max_body)
            return await _attended(request, self.models.answer(name, protocol, asked))
        most = max((card.max_body for card in self.models.cards.values()), default=0)
        asked = await _asked(request, most)
        body = json_body(asked, most)
        card = self._named(body, protocol)
        answering = self.models.answer(card.name, protocol, Asked(body, asked.headers))
        return await _attended(request, answering)

    async def _explained(self, request: Request, name: str) -> HttpReply:
        card = self.card(name)
        asked = await _asked(request, card.max_body)
        return await _attended(request, self.models.explain(name, asked))

    def card(self, name: str) -> Card:
        """The model of this name. Raises WireError where there is none."""
        card = self.models.cards.get(name)
        if card is None:
            known = ", ".join(self.models.cards)
            message = f"there is no model of this name; there are: {known}"
            raise WireError(HTTPStatus.NOT_FOUND, "model_not_found", message, "model")
        return card

    def _named(self, body: dict[str, Any], protocol: str) -> Card:
        """The model that a body names; where it names none and only one fits the protocol, that one."""
        name = body.get("model")
        if isinstance(name, str):
            return self.card(name)
        fitting = [card for card in self.models.cards.values() if card.task == PROTOCOLS[protocol].task]
        if name is None and protocol == "rerank" and len(fitting) == 1:
            return fitting[0]
        raise RequestError("invalid_request", "model must be the name of a model", "model")


async def _asked(request: Request, limit: int) -> Asked:
    """A request with its body, at most ``limit`` bytes of it. Raises RequestError."""
    headers = dict(request.headers)
    stated = headers.get("content-length", "")
    large = RequestError("too_large", f"the body has more than {limit} bytes")
    if stated.isdigit() and (len(stated) > 15 or int(stated) > limit):
        raise large
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise large
        parts.append(part)
    return Asked(b"".join(parts), headers)


async def _attended(request: Request, answering: Coroutine[Any, Any, HttpReply]) -> HttpReply:
    """The reply; where its client goes away first, or nobody waits for it any more, it is given up."""
    task = asyncio.ensure_future(answering)
    gone: asyncio.Future[None] | None = None
    try:
        done, _ = await asyncio.wait({task}, timeout=ATTENTION)
        if not done:
            gone = asyncio.ensure_future(_gone(request))
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else HttpReply(CLIENT_GONE, b"")
    finally:
        for each in (task, gone):
            if each is not None:
                each.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _as_reply(telling: Callable[[], Any]) -> HttpReply:
    said = telling()
    return HttpReply(200, encoded(await said if inspect.isawaitable(said) else said))


def response_of(reply: HttpReply) -> Response:
    """A reply as the application sends it."""
    return Response(reply.body, reply.status, reply.headers, reply.content_type)
