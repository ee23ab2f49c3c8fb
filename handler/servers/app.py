"""The FastAPI application: addresses of every protocol in front of models that live here or elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from handler.errors import internal_error
from handler.servers.door import Door, Models
from handler.servers.figures import Figures
from handler.servers.routes import health, routes
from handler.servers.running import Running
from handler.wire import WireError


def application(
    models: Models,
    *,
    keys: tuple[str, ...] = (),
    running: Running | None = None,
    figures: Figures | None = None,
    at_end: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application around ``models``; ``keys``: see Door; ``running``: what drains it; ``figures``: its metrics;
    ``at_end``: called when its server has answered everything."""
    running, figures = running or Running(), figures or Figures()
    door = Door(models, keys, running, figures)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        at_end()

    app = FastAPI(title="Encoder models", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.include_router(routes(door, models))
    app.include_router(health(models, running, figures))

    @app.exception_handler(HTTPException)
    async def of_an_address(request: Request, error: HTTPException) -> Response:
        """What the router refuses: no such address, no such method."""
        status = HTTPStatus(error.status_code)
        type = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
        response = door.refusal(
            request.url.path, WireError(status, type, f"{status.phrase.lower()}: docs/servers.md lists the addresses")
        )
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def of_the_server(request: Request, error: Exception) -> Response:
        """What nobody foresaw: its trace stays in the log."""
        return door.refusal(request.url.path, internal_error(error))

    return app
