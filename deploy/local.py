"""The server of this checkout: on the ports it was started with, or those that PORT says; and who else serves here."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import requests

from deploy import ports
from deploy.server import PORTS, ROOT, Server, ServerError, is_server

STORE = ROOT / "model_store"
RUN = ROOT / "build" / "server"
NOBODY = "no server of this folder is running; run make serve"
_CLOCKS = 2.0
"""Seconds by which a process's start and a file's time may be apart."""


def local_server(port: str) -> Server:
    """The server whose files lie in ``RUN``: the running one on its own ports, whatever ``port`` says; else one for
    ``port`` (text of a variable; empty: TorchServe's own ports) and those after it. Raises ServerError."""
    server = Server(RUN, STORE)
    if server.process() is None:
        return server if port in ("", str(PORTS[0])) else _on(port)
    try:
        at = {name: port for name, (_, port) in ports.addresses((RUN / "config.properties").read_text()).items()}
        http = (at["inference"], at["management"], at["metrics"])
        return Server(RUN, STORE, ports=http, grpc_ports=(at["grpc_inference"], at["grpc_management"]))
    except (OSError, KeyError):  # removed under a running server, which can still be stopped
        return server


def _on(port: str) -> Server:
    most = 2**16 - ports.COUNT
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) <= most):
        raise ServerError(f"PORT is a number from 1 to {most}, as the next four are used, too; not {port!r}")
    first = int(port)
    return Server(RUN, STORE, ports=(first, first + 1, first + 2), grpc_ports=(first + 3, first + 4))


def running(server: Server) -> Server:
    """``server`` where it runs; else the one that TorchServe's own command started in this folder, which has its tokens
    here: to be asked, not to be stopped. Raises ServerError where there is neither."""
    if server.process() is not None:
        return server
    if _started_here() is None:
        raise ServerError(NOBODY)
    return Server(Path.cwd(), STORE, ports=server.ports)


def started_by_its_own_command() -> bool:
    """Whether a TorchServe runs that was started in this folder, and not by ``make serve``."""
    return _started_here() is not None


def _started_here() -> psutil.Process | None:
    for process in psutil.process_iter():
        try:
            if is_server(process) and Path(process.cwd()) == Path.cwd():
                return process
        except psutil.Error:  # ended, or another user's
            continue
    return None


def token(server: Server) -> str:
    """The inference token of the server that runs here. Raises ServerError where none runs, or it has written none."""
    found = running(server)
    process = found.process() or _started_here()
    path = found.folder / "key_file.json"
    try:
        if process is None or path.stat().st_mtime < process.create_time() - _CLOCKS:
            raise FileNotFoundError(path)  # of an earlier server
        return str(json.loads(path.read_text())["inference"]["key"])
    except (OSError, ValueError, KeyError, TypeError, psutil.Error) as error:
        raise ServerError("the server that runs here has written no token: it wants none, or is starting") from error


def served(server: Server) -> list[str]:
    """The names of the models that a running server has. Raises ServerError, or requests' errors."""
    url = f"http://127.0.0.1:{server.ports[1]}/models"
    answer = requests.get(url, params={"limit": "1000"}, headers=server.headers("management"), timeout=10)
    if not answer.ok:
        raise ServerError(f"the server does not say what it serves ({answer.status_code})")
    return [model["modelName"] for model in answer.json()["models"]]
