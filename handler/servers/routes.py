"""The addresses. docs/servers.md lists them."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from handler.servers.door import Door, Models, response_of
from handler.servers.figures import CONTENT_TYPE, Figures
from handler.servers.running import Running
from handler.wire import HttpReply, WireError
from handler.wire.base import encoded
from handler.wire.kserve import VERSION, VERSIONS, model_metadata, server_metadata
from handler.wire.openai import model_card

SENT = ["POST", "PUT"]
"""TorchServe takes both for predictions."""


def routes(door: Door, models: Models) -> APIRouter:
    """What a key guards, if one is asked for."""
    router = APIRouter()
    for group in (_own, _openai, _rerank, _kserve):
        group(router, door, models)
    return router


def _own(router: APIRouter, door: Door, models: Models) -> None:
    @router.api_route("/predictions/{name}", methods=SENT)
    async def predictions(request: Request, name: str) -> Response:
        return await door.pass_on(request, name, "own")

    @router.api_route("/predictions/{name}/{version}", methods=SENT)
    async def of_a_version(request: Request, name: str, version: str) -> Response:
        return _wrong(door, request, version) or await door.pass_on(request, name, "own")

    @router.api_route("/explanations/{name}", methods=SENT)
    async def explanations(request: Request, name: str) -> Response:
        return await door.explained(request, name)

    @router.get("/models")
    async def listed(request: Request) -> Response:
        cards = [{"name": card.name, "task": card.task} for card in models.cards.values()]
        return await door.told(request, lambda: {"models": cards})

    @router.get("/models/{name}")
    async def described(request: Request, name: str) -> Response:
        return await door.told(request, lambda: models.describe(door.card(name).name))


def _openai(router: APIRouter, door: Door, models: Models) -> None:
    @router.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await door.pass_on(request, None, "openai")

    @router.get("/v1/models")
    async def listed(request: Request) -> Response:
        cards = [model_card(card.name, card.created) for card in models.cards.values()]
        return await door.told(request, lambda: {"object": "list", "data": cards})

    @router.get("/v1/models/{name}")
    async def retrieved(request: Request, name: str) -> Response:
        return await door.told(request, lambda: model_card(name, door.card(name).created))


def _rerank(router: APIRouter, door: Door, models: Models) -> None:
    @router.post("/rerank")
    @router.post("/v1/rerank")
    @router.post("/v2/rerank")
    async def rerank(request: Request) -> Response:
        return await door.pass_on(request, None, "rerank")


def _kserve(router: APIRouter, door: Door, models: Models) -> None:
    # Behind the route of /v1/models/{name}, which takes GET only, and before none that would take the colon for a name.
    @router.post("/v1/models/{name}:predict")
    async def first_version(request: Request, name: str) -> Response:
        return await door.pass_on(request, name, "kserve_v1")

    @router.post("/v2/models/{name}/infer")
    async def infer(request: Request, name: str) -> Response:
        return await door.pass_on(request, name, "kserve_v2")

    @router.post("/v2/models/{name}/versions/{version}/infer")
    async def infer_a_version(request: Request, name: str, version: str) -> Response:
        return _wrong(door, request, version) or await door.pass_on(request, name, "kserve_v2")

    @router.get("/v2")
    async def server(request: Request) -> Response:
        return await door.told(request, server_metadata)

    @router.get("/v2/models/{name}")
    async def model(request: Request, name: str) -> Response:
        return await door.told(request, lambda: model_metadata(name, door.card(name).platform, door.card(name).fields))

    @router.get("/v2/models/{name}/versions/{version}")
    async def model_version(request: Request, name: str, version: str) -> Response:
        return _wrong(door, request, version) or await model(request, name)


def _wrong(door: Door, request: Request, version: str) -> Response | None:
    """A refusal where a version is asked for that no archive has."""
    if version in VERSIONS:
        return None
    message = f"the only version of a model is {VERSION}"
    return door.refusal(request.url.path, WireError(HTTPStatus.NOT_FOUND, "version_not_found", message))


def health(models: Models, running: Running, figures: Figures) -> APIRouter:
    """What asks for no key."""
    router = APIRouter()

    async def ready() -> bool:
        return not running.stopping and await models.healthy()

    @router.get("/ping")
    async def ping() -> Response:
        well = await ready()
        return _told({"status": "Healthy" if well else "Unhealthy"}, well)

    @router.get("/v2/health/live")
    async def alive() -> Response:
        return _told({"live": True}, True)

    @router.get("/v2/health/ready")
    async def is_ready() -> Response:
        well = await ready()
        return _told({"ready": well}, well)

    @router.get("/v2/models/{name}/ready")
    @router.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str) -> Response:
        if name not in models.cards:
            return response_of(HttpReply(HTTPStatus.NOT_FOUND, encoded({"error": "there is no model of this name"})))
        well = await ready()
        return _told({"name": name, "ready": well}, well)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(figures.text(), media_type=CONTENT_TYPE)

    return router


def _told(said: dict[str, object], well: bool) -> Response:
    return response_of(HttpReply(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, encoded(said)))
