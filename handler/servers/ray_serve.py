"""``python -m handler.servers.ray_serve NAME.mar ...``: the application on Ray Serve, on one machine or a cluster.

One archive: each replica is the application with its model. Several: a deployment each, which grow and shrink by
themselves, behind replicas that hold the application alone. Replicas batch by tokens; Serve spreads requests over them
and changes their number with the requests that wait. :func:`build` makes the same for ``serve run`` and Serve's
configuration files. The archives must be readable under their paths on every machine.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ray import serve

import handler
from handler.archive import ArchiveError
from handler.config import ConfigError, first_problem
from handler.draining import VARIABLE
from handler.errors import RequestError, internal_error
from handler.faults import guarded
from handler.servers.app import application
from handler.servers.figures import Figures
from handler.servers.keys import read_keys
from handler.servers.local import LocalModels, named, parser_of
from handler.servers.model import Card
from handler.servers.running import Running, close
from handler.threads import available_cores
from handler.wire import PROTOCOLS, Asked, HttpReply

NAME = "efft"
"""Of the Serve application."""
POLL = 0.5
"""Seconds between two looks whether the application runs."""
DRAIN = 60.0
"""Seconds that a stopping replica gives its running requests."""
KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than a proxy before it keeps its own (nginx: 60)."""
HEALTH_PERIOD = 10.0
"""Seconds between two questions whether a replica can still answer."""


def _listed(value: Any) -> Any:
    """``serve run`` hands over texts: several archives are parted by commas."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


class Arguments(BaseModel):
    """Of :func:`build`. ``archives``: PATH or NAME=PATH each."""

    model_config = ConfigDict(extra="forbid")

    archives: Annotated[list[str], BeforeValidator(_listed)]
    threads: Annotated[int, Field(gt=0)] = 1
    """Of one replica, and the CPUs that it takes of Ray's."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs that a replica takes of Ray's, 0.5 for two replicas on one; 0: it computes on the CPU."""
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    """Of each archive."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 32
    """Requests that wait or run in a replica, on average, beyond which there is to be another one."""
    max_ongoing_requests: Annotated[int, Field(gt=0)] = 256
    """Requests that a replica is given at a time; a pass can hold no more than are there."""
    max_queued_requests: Annotated[int, Field(gt=0)] = 1000
    """Requests of one model that wait before the replicas; beyond them 503 is answered."""
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300
    entrances: Annotated[int, Field(gt=0)] = 1
    """Replicas that hold the application alone, where there are several archives."""
    key_file: Path | None = None
    """Keys, one a line, one of which a client must bring; read by the machine that deploys."""


class Direct:
    """A replica that is both: the application, and its one archive's model."""

    def __init__(self, archives: Mapping[str, Path], keys: tuple[str, ...], loading: Mapping[str, Any]) -> None:
        self._figures = Figures()
        self._keys = keys
        self._models = _open(archives, self._figures, loading)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return application(self._models, keys=self._keys, running=Running(), figures=self._figures)

    async def check_health(self) -> None:
        """Serve replaces a replica whose device has failed."""
        await _check(self._models)

    def __del__(self) -> None:
        if models := getattr(self, "_models", None):
            models.close()


class Encoder:
    """A replica of one archive's model."""

    def __init__(self, name: str, archives: Mapping[str, Path], loading: Mapping[str, Any]) -> None:
        self._name = name
        self._models = _open(archives, Figures(), loading)

    async def answer(self, protocol: str, asked: Asked) -> HttpReply:
        """See ServedModel."""
        return await self._models.answer(self._name, protocol, asked)

    async def explain(self, asked: Asked) -> HttpReply:
        """See ServedModel."""
        return await self._models.explain(self._name, asked)

    async def describe(self) -> dict[str, Any]:
        """See ServedModel."""
        return await self._models.describe(self._name)

    async def check_health(self) -> None:
        """Serve replaces a replica whose device has failed."""
        await _check(self._models)

    def __del__(self) -> None:
        if models := getattr(self, "_models", None):
            models.close()


class Entrance:
    """A replica of the application, whose models are elsewhere."""

    def __init__(self, cards: Mapping[str, Card], keys: tuple[str, ...], handles: Mapping[str, Any]) -> None:
        self._models = RayModels(cards, handles)
        self._keys = keys

    def __serve_build_asgi_app__(self) -> FastAPI:
        return application(self._models, keys=self._keys, running=Running())


class RayModels:
    """See handler.servers.door.Models. ``handles``: a deployment's by the name of its model."""

    def __init__(self, cards: Mapping[str, Card], handles: Mapping[str, Any]) -> None:
        self.cards = cards
        self._handles = handles

    async def answer(self, name: str, protocol: str, asked: Asked) -> HttpReply:
        """See ServedModel."""
        return await self._asked(self._handles[name].answer.remote(protocol, asked), protocol)

    async def explain(self, name: str, asked: Asked) -> HttpReply:
        """See ServedModel."""
        return await self._asked(self._handles[name].explain.remote(asked), "own")

    async def describe(self, name: str) -> dict[str, Any]:
        """See ServedModel."""
        said: dict[str, Any] = await self._handles[name].describe.remote()
        return said

    async def healthy(self) -> bool:
        """Serve sends nothing to replicas that are not."""
        return True

    async def _asked(self, response: Any, protocol: str) -> HttpReply:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        try:
            reply: HttpReply = await response
        except BackPressureError:
            error = RequestError("overloaded", "too many requests wait; ask again")
        except (RayActorError, DeploymentUnavailableError):
            error = RequestError("overloaded", "the model's process has ended and is being replaced; ask again")
        except asyncio.CancelledError:
            raise
        except Exception as failure:
            error = internal_error(failure)
        else:
            return reply
        return PROTOCOLS[protocol].refusal(error)


def _open(archives: Mapping[str, Path], figures: Figures, loading: Mapping[str, Any]) -> LocalModels:
    """Raises RuntimeError in one line: Ray shows it to who deploys."""
    try:
        return LocalModels.open(archives, figures, **loading)
    except (ArchiveError, ConfigError) as error:
        raise RuntimeError(str(error)) from None


async def _check(models: LocalModels) -> None:
    if not await models.healthy():
        raise RuntimeError("the device has failed")


def build(arguments: Arguments) -> serve.Application:
    """The Serve application of some archives. Raises ArchiveError or ConfigError in one line."""
    archives = named(arguments.archives)
    cards = {name: Card.read(name, path) for name, path in archives.items()}
    archives = {name: path.resolve() for name, path in archives.items()}
    keys = read_keys(arguments.key_file)
    loading = {
        "device": "cuda" if arguments.gpus else "cpu",
        "settings": {"maxWorkers": 1, "handler": {"threads": arguments.threads, "pin": False}},
        "capacity": arguments.max_ongoing_requests,
    }
    model = _options(arguments)
    deployed: Any = serve.deployment  # which is typed as a decorator alone
    if len(archives) == 1:
        made = deployed(serve.ingress()(Direct), name=next(iter(archives)), **model)
        return made.bind(archives, keys, loading)
    handles = {
        name: deployed(Encoder, name=name, **model).bind(name, {name: path}, loading) for name, path in archives.items()
    }
    entrance = deployed(
        serve.ingress()(Entrance),
        name="entrance",
        num_replicas=arguments.entrances,
        max_ongoing_requests=arguments.max_ongoing_requests * arguments.max_replicas * len(archives),
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=DRAIN,
        logging_config=_LOGGING,
    )
    return entrance.bind(cards, keys, handles)


_LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""A line for each request costs more than its tokenization."""


def _options(arguments: Arguments) -> dict[str, Any]:
    """What Serve is told of a deployment that holds a model."""
    return {
        "ray_actor_options": {"num_cpus": arguments.threads, "num_gpus": arguments.gpus},
        "max_ongoing_requests": arguments.max_ongoing_requests,
        "max_queued_requests": arguments.max_queued_requests,
        "autoscaling_config": {
            "min_replicas": arguments.min_replicas,
            "max_replicas": max(arguments.min_replicas, arguments.max_replicas),
            "target_ongoing_requests": arguments.target_ongoing_requests,
            "upscale_delay_s": arguments.upscale_delay_s,
            "downscale_delay_s": arguments.downscale_delay_s,
        },
        "health_check_period_s": HEALTH_PERIOD,
        "graceful_shutdown_timeout_s": DRAIN,
        "logging_config": _LOGGING,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy, serve until told to end, take the application down again; the exit status."""
    options = _parser().parse_args(arguments)
    return guarded("ray_serve", lambda: _main(options))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("ray_serve", __doc__, 8000)
    parser.add_argument("--ray", default="", metavar="ADDRESS", help="a cluster (default: RAY_ADDRESS's, else its own)")
    for name, info in Arguments.model_fields.items():
        if name != "archives":
            default = available_cores() if name == "max_replicas" else info.default
            kind = {"gpus": float, "target_ongoing_requests": float, "key_file": Path}.get(name, type(info.default))
            parser.add_argument(f"--{name.removesuffix('_s').replace('_', '-')}", dest=name, type=kind, default=default)
    return parser


def _main(options: argparse.Namespace) -> int:
    try:
        given = {name: getattr(options, name) for name in Arguments.model_fields}
        arguments = Arguments(**given)
        made = build(arguments)
        with tempfile.TemporaryDirectory(prefix="efft-drain-") as scratch:
            folder = Path(os.environ.setdefault(VARIABLE, scratch))  # before Ray starts processes, which inherit it
            _connect(options.ray, arguments.threads * arguments.min_replicas * len(arguments.archives))
            _serve(made, options, folder)
        return 0
    except ValidationError as error:
        sys.stderr.write(f"ray_serve: {first_problem(error)}\n")
    except (ArchiveError, ConfigError) as error:
        sys.stderr.write(f"ray_serve: {error}\n")
    return 1


def _own(address: str) -> bool:
    """Whether the cluster is this command's own."""
    return address in ("", "local") and not os.environ.get("RAY_ADDRESS")


def _connect(address: str, needed: int) -> None:
    """``needed``: CPUs that the fewest replicas take. An own cluster has as many, however few the machine has: more
    archives than cores share them, where Ray would wait for ever for another machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of this process: what goes wrong comes as exceptions
    # No thread of its own for what replicas compute in their event loop: that is little, and the way there is long.
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    import ray

    settings: dict[str, Any] = {"include_dashboard": False, "num_cpus": max(available_cores(), needed)}
    if not _own(address):  # a cluster that runs already need not have this package
        settings = {"runtime_env": {"py_modules": [str(Path(handler.__file__).parent)]}}
    try:
        ray.init(address=address or None, logging_level=logging.ERROR, log_to_driver=False, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address!r} ({' '.join(str(error).split())[:200]})") from error


def _serve(made: serve.Application, options: argparse.Namespace, folder: Path) -> None:
    """Until the process is told to end. ``folder``: which an own cluster's processes watch (handler/draining.py)."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        if _deployed(made, options, ended):
            sys.stdout.write(f"ray_serve: serving at http://{options.host}:{options.port}\n")
            sys.stdout.flush()
            ended.wait()
    finally:
        _take_down(options.ray, folder)


def _deployed(made: serve.Application, options: argparse.Namespace, ended: threading.Event) -> bool:
    """Whether the application runs; False where the process was told to end first. Raises ConfigError."""
    serve.start(
        http_options={"host": options.host, "port": options.port, "keep_alive_timeout_s": KEEP_ALIVE},
        logging_config=_LOGGING,
    )
    # Serve's own way to wait hears no signal, and waits for ever for a replica that the cluster has no room for.
    serve.run_many([serve.RunTarget(made, name=NAME, route_prefix="/")], wait_for_applications_running=False)
    while not ended.wait(POLL):
        state = serve.status().applications[NAME]
        if state.status == "RUNNING":
            return True
        if state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ConfigError(f"the application could not be deployed: {_reason(state)}")
    return False


def _reason(state: Any) -> str:
    """The last line of what Serve says of a failed application: the error's own."""
    said = [deployment.message for deployment in state.deployments.values()] + [state.message]
    lines = [line.strip() for message in said for line in message.splitlines() if "Error: " in line]
    return (lines or [" ".join(state.message.split())])[-1][:300]


def _take_down(address: str, folder: Path) -> None:
    """Replicas answer what they run. Serve's own way to end cuts off what its proxies carry, so of an own cluster the
    replicas refuse first; of another one the application goes, whose replicas Serve lets finish."""
    import ray

    if _own(address):
        close(folder, DRAIN)
        serve.shutdown()
    else:
        serve.delete(NAME)
    ray.shutdown()


if __name__ == "__main__":
    # By its name, not as __main__, whose classes Ray would have to carry along by value.
    from handler.servers import ray_serve

    sys.exit(ray_serve.main())
