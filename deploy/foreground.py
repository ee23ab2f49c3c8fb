"""``efft serve``: a server that belongs to the process which started it, as containers and service managers have it.

``make serve`` leaves one in the background instead. SIGTERM and SIGINT end this one as an operator would: what was
accepted is answered, what comes is refused with 503, then TorchServe stops.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import requests

from deploy.server import PORTS, PortTakenError, Server, ServerError
from deploy.signals import Interrupted, raise_interrupts
from handler.config import NAME_PATTERN
from handler.faults import guarded

DRAIN = 60.0
"""Seconds that running requests have when the server is asked to stop."""
GRPC_PORTS = (7070, 7071)
_LOOK = 0.5
"""Seconds between two looks at whether the server still runs."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """See argparse.ArgumentParser.error."""
        self.exit(2, f"efft: {message}; see {self.prog} --help\n")


def default_folder(port: int) -> Path:
    """Where a server on a port keeps logs, tokens and unpacked archives (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "efft" / f"serve-{port}"


def make_parser() -> argparse.ArgumentParser:
    """The command line of ``efft serve``."""
    parser = _Parser(prog="efft serve", description=__doc__)
    parser.add_argument("archives", nargs="+", type=Path, metavar="NAME.mar", help="or folders, whose archives all are")
    parser.add_argument("--host", default="127.0.0.1", help="where requests are taken (default: this machine only)")
    parser.add_argument("--port", type=int, default=PORTS[0], help=f"default: {PORTS[0]}")
    parser.add_argument(
        "--management-port", type=int, default=PORTS[1], help=f"on this machine only (default: {PORTS[1]})"
    )
    parser.add_argument("--metrics-host", default="127.0.0.1", help="where Prometheus may ask (default: this machine)")
    parser.add_argument("--metrics-port", type=int, default=PORTS[2], help=f"default: {PORTS[2]}")
    parser.add_argument(
        "--grpc-port", type=int, default=GRPC_PORTS[0], help="and the next one, for management (default: 7070)"
    )
    parser.add_argument("--no-token", action="store_true", help="ask for no token: where a proxy or a mesh asks")
    parser.add_argument("--folder", type=Path, help="for logs, tokens and unpacked archives (default: below ~/.local)")
    parser.add_argument("--console", action="store_true", help="print TorchServe's log instead of keeping it in a file")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE", help="of TorchServe's config.properties"
    )
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="to get ready (default: 300)")
    parser.add_argument(
        "--drain", type=float, default=DRAIN, metavar="SECONDS", help=f"to stop in (default: {DRAIN:g})"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; exit status 0 then, 1 with one line where the server does not start or dies."""
    options = make_parser().parse_args(arguments)
    return guarded("efft", lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    raise_interrupts()
    try:
        archives = find_archives(options.archives)
        server = make_server(options, archives)
    except ServerError as error:
        return _fail(str(error))
    try:
        return _serve(server, list(archives), options)
    except PortTakenError as error:
        return _fail(f"{error}; stop it, or see --port, --management-port, --metrics-port and --grpc-port")
    except ServerError as error:
        return _fail(str(error))
    except Interrupted as error:
        return _fail(f"ended by {error}", 128 + error.number)


def _serve(server: Server, names: list[str], options: argparse.Namespace) -> int:
    announcement = f"starting TorchServe with {', '.join(names)}; its files: {server.folder}"
    server.start(names, options.timeout, checked=lambda: print(announcement, flush=True))
    print(f"ready: http://{options.host}:{options.port}/predictions/{names[0]}", flush=True)
    if not options.no_token:
        print(f"the inference token stands in {server.folder / 'key_file.json'}", flush=True)
    try:
        while server.process() is not None:
            time.sleep(_LOOK)
    except Interrupted as error:
        print(f"{error}: stopping when running requests are answered", flush=True)
        answered = server.stop(options.drain)
        print("stopped" if answered else f"stopped; after {options.drain:g} s a worker was still computing", flush=True)
        return 0
    server.stop()
    raise ServerError(f"TorchServe has ended; its logs are in {server.folder / 'logs'}")


def find_archives(given: Sequence[Path]) -> dict[str, Path]:
    """The archives by name; of a folder all that lie in it. Raises ServerError for none, and for two of a name."""
    found: dict[str, Path] = {}
    for path in given:
        files = sorted(path.glob("*.mar")) if path.is_dir() else [path]
        if not files:
            raise ServerError(f"there is no .mar in {path}")
        for file in files:
            if file.suffix != ".mar" or not file.is_file():
                raise ServerError(f"there is no archive {str(file)!r}; efft archive builds one")
            if not NAME_PATTERN.fullmatch(file.stem):
                raise ServerError(f"{file.stem!r} is no archive's name; rename {file.name}")
            if file.stem in found and found[file.stem].resolve() != file.resolve():
                raise ServerError(f"two archives are called {file.stem}: {found[file.stem]} and {file}")
            found[file.stem] = file
    return found


def make_server(options: argparse.Namespace, archives: dict[str, Path]) -> Server:
    """The server that the options describe, its archives in one model store. Raises ServerError."""
    folder = options.folder or default_folder(options.port)
    settings = {
        "inference_address": f"http://{options.host}:{options.port}",
        "metrics_address": f"http://{options.metrics_host}:{options.metrics_port}",
        "grpc_inference_address": options.host,
    }
    if options.no_token:
        settings["disable_token_authorization"] = "true"
    for text in options.setting:
        key, equals, value = text.partition("=")
        if not (key and equals) or any(c in text for c in "\r\n"):
            raise ServerError(f"a setting is KEY=VALUE, such as job_queue_size=100, not {text!r}")
        settings[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    return Server(
        folder,
        _store(folder, archives),
        ports=(options.port, options.management_port, options.metrics_port),
        grpc_ports=(options.grpc_port, options.grpc_port + 1),
        settings=settings,
        console=options.console,
    )


def _store(folder: Path, archives: dict[str, Path]) -> Path:
    """TorchServe takes archives from one folder: theirs, or one of links where they lie in several."""
    homes = {path.resolve().parent for path in archives.values()}
    if len(homes) == 1 and all(path.resolve().name == f"{name}.mar" for name, path in archives.items()):
        return homes.pop()
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    for name, path in archives.items():
        (store / f"{name}.mar").symlink_to(path.resolve())
    return store


def health(arguments: Sequence[str] | None = None) -> int:
    """``efft health``: 0 where every model has all its workers, else 1 and one line. For an image's health check."""
    parser = _Parser(prog="efft health", description=health.__doc__)
    parser.add_argument("--port", type=int, default=PORTS[0])
    parser.add_argument("--folder", type=Path, help="as of efft serve: the token is read there")
    options = parser.parse_args(arguments)
    server = Server(options.folder or default_folder(options.port), Path(), ports=(options.port, *PORTS[1:]))
    try:
        answer = requests.get(f"{server.url}/ping", headers=server.headers(), timeout=5)
        said = answer.json().get("status", answer.text[:80])
    except (requests.RequestException, OSError, ValueError, AttributeError, KeyError) as error:
        return _fail(f"no answer from {server.url} ({type(error).__name__})")
    print(said)
    return 0 if answer.ok and said == "Healthy" else 1


def _fail(message: str, status: int = 1) -> int:
    print(f"efft: {message}", file=sys.stderr)
    return status
