"""Modules run in processes of their own that need not import torch and transformers again: forked from one that has.

``python -m MODULE`` takes three to five seconds before it begins. Where a test's point is what the command does, and
not how a process starts, :func:`run` does the same in a child of a server that has imported all that and computed
nothing yet. Each run is a process of its own as before: its status, signals that end it, what it writes are its own.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert", "sentence_transformers", "builder.cli", "builder.archive",
    "builder.gate.parity", "handler.engine",
)  # fmt: skip
_GATE = [sys.executable, "-m", "builder.gate.parity"]
_started = threading.Lock()


def run(
    module: str, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` with nothing to read; its exit status, negative where a signal ended it, and what
    it wrote."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as connection:
        with _started:
            address = _server()
        connection.connect(address)
        files = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        order = {"module": module, "arguments": arguments, "cwd": str(cwd), "files": files}
        connection.sendall(json.dumps({**order, "environment": dict(env or os.environ)}).encode() + b"\n")
        answer = connection.makefile().readline()
        if not answer:
            raise RuntimeError("the process that others are forked from has ended")
        out, err = (Path(file).read_text(encoding="utf-8", errors="replace") for file in files)
    return subprocess.CompletedProcess([module, *arguments], int(answer), out, err)


def take_over_the_gate() -> None:
    """Let the gate's fresh process be such a one, in this process."""
    original: Any = subprocess.run

    def started(command: Any, *arguments: Any, **keys: Any) -> Any:
        if isinstance(command, list) and command[:3] == _GATE and keys.get("capture_output"):
            return run(command[2], *command[3:], cwd=Path.cwd())
        return original(command, *arguments, **keys)

    subprocess.run = started


@cache
def _server() -> str:
    """The address of this process's server, started at the first call and ended with this process."""
    if _ADDRESS:
        return _ADDRESS
    folder = tempfile.mkdtemp(prefix="efft-fresh-", dir="/tmp")  # sockets want a short path
    address = f"{folder}/socket"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EFFT_FRESH": address}
    command = [sys.executable, "-m", "tests.fresh"]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError("the process that others are forked from did not start")
    atexit.register(_end, server, folder)
    return address


def _end(server: subprocess.Popen[bytes], folder: str) -> None:
    server.terminate()
    server.wait()
    Path(folder, "socket").unlink(missing_ok=True)
    Path(folder).rmdir()


def _serve(address: str) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the runs
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(16)
        print("ready", flush=True)
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:  # closed where the tests have ended
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                os._exit(_watched(connection))
            connection.close()


def _watched(connection: socket.socket) -> int:
    """One run: forked, waited for, its status told."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order = json.loads(connection.makefile().readline())
    if (child := os.fork()) == 0:
        connection.close()
        os._exit(_child(order))
    _, status = os.waitpid(child, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return 0


def _child(order: dict[str, Any]) -> int:
    for number, file in enumerate([os.devnull, *order["files"]]):
        descriptor = os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.environ.pop("EFFT_FRESH", None)
    os.chdir(order["cwd"])
    sys.argv = [order["module"], *order["arguments"]]
    sys.path[:0] = [order["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    sys.modules.pop(order["module"], None)  # it runs as __main__
    take_over_the_gate()
    status = 0
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status


_ADDRESS = os.environ.get("EFFT_FRESH", "")
"""Of the server that this process is, or is a run of: one server is enough."""

if __name__ == "__main__":
    _serve(_ADDRESS)
