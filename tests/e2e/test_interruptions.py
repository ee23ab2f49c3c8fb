"""Workers that die or hang and servers that stop, each with the client in a loop: no request without its answer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from builder.compile import ROOT
from builder.tune.workers import replace_files
from deploy.server import Server
from handler.canary import close
from handler.client import Client
from tests.e2e.conftest import free_ports

NAME = "roberta_like"
TEXTS = [f"where is my order number {number}" for number in range(8)]
HANGS = 4
"""Seconds after which the server gives a worker up."""


@pytest.fixture(scope="module")
def own(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("interrupted")
    archive = Path(shutil.copy(store / f"{NAME}.mar", folder))
    settings = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 8, "maxBatchDelay": 5}
    settings |= {"responseTimeout": HANGS, "startupTimeout": 120}
    replace_files(archive, {"model-config.yaml": yaml.safe_dump(settings).encode()})
    ports = free_ports(5)
    with Server(folder / "server", folder, ports=tuple(ports[:3]), grpc_ports=tuple(ports[3:])) as running:
        running.start([NAME])
        yield running


def client(server: Server) -> Client:
    """One that asks again soon: of a request that the front end has lost only silence tells."""
    return Client(server.url, key_file=server.folder / "key_file.json", timeout=8, retries=100, deadline=110)


class Loop:
    """Clients that ask again and again while the block runs; every answer is held against an undisturbed one's."""

    def __init__(self, server: Server, connections: int) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self._server = server
        self._done = threading.Event()
        with client(server) as asking:
            self._expected = [asking.predict(NAME, text) for text in TEXTS]
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(connections)]

    def _ask(self, number: int) -> None:
        with client(self._server) as asking:
            while not self._done.is_set():
                number = (number + 1) % len(TEXTS)
                try:
                    answer = asking.predict(NAME, TEXTS[number])
                    if not close(answer, self._expected[number], 1e-4):
                        self.failures.append(f"wrong: {answer}")
                except Exception as error:
                    self.failures.append(repr(error))
                self.answers += 1
                time.sleep(0.01)

    def __enter__(self) -> Loop:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def more(self, timeout: float = 100) -> None:
        """Wait until every client has had an answer to a request that it sent after now."""
        wanted, end = self.answers + 2 * len(self._threads), time.monotonic() + timeout
        while self.answers < wanted and time.monotonic() < end:
            time.sleep(0.05)
        assert self.answers >= wanted


def test_a_worker_that_is_killed(own: Server) -> None:
    with Loop(own, 8) as loop:
        for _ in range(2):
            (worker,) = own.worker_pids()
            os.kill(worker, signal.SIGKILL)
            loop.more()
    assert not loop.failures
    assert own.worker_pids() != [worker]


def test_a_worker_that_hangs(own: Server) -> None:
    """The response timeout notices it: its batch is answered 500, and the client asks again."""
    (worker,) = own.worker_pids()
    with Loop(own, 4) as loop:
        os.kill(worker, signal.SIGSTOP)
        start = time.monotonic()
        loop.more()
        assert time.monotonic() - start > HANGS / 2
    assert not loop.failures
    assert not psutil.pid_exists(worker)


def test_a_server_that_stops_under_load_and_comes_back(own: Server) -> None:
    with Loop(own, 32) as loop:
        assert own.stop(drain=30)
        assert not (own.folder / "extracted").exists()
        own.start([NAME])
        loop.more()
    assert not loop.failures


def test_draining_answers_what_was_accepted_and_refuses_what_comes(own: Server) -> None:
    url, headers = f"{own.url}/predictions/{NAME}", own.headers()
    body = json.dumps([f"{text} " * 10 for text in TEXTS])
    accepted: list[int] = []

    def ask() -> None:
        json_headers = {**headers, "Content-Type": "application/json"}
        accepted.append(requests.post(url, data=body, headers=json_headers, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert own.drain(30)
    try:
        refused = requests.post(url, data="x", headers=headers, timeout=60)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["error"]["type"] == "overloaded"
        for thread in threads:
            thread.join()
        assert accepted == [200] * 12
    finally:
        (own.folder / "drain" / "stop").unlink()
    assert requests.post(url, data="x", headers=headers, timeout=60).status_code == 200


SCRIPT = """
import sys, time
from pathlib import Path
from deploy.server import Server
from deploy.signals import raise_interrupts
folder, store, *ports = sys.argv[1:]
ports = [int(port) for port in ports]
raise_interrupts()
with Server(Path(folder), Path(store), ports=tuple(ports[:3]), grpc_ports=tuple(ports[3:])) as server:
    server.start(["roberta_like"])
    print("up", flush=True)
    time.sleep(100)
"""


def _processes(folder: Path) -> list[str]:
    """Of the server in ``folder`` and its workers: their command lines name it or its sockets."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and ("ModelServer" in line or "model_service_worker" in line):
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("number", "when"), [(signal.SIGTERM, "starting"), (signal.SIGHUP, "running"), (signal.SIGINT, "running")]
)
def test_a_signal_leaves_no_server_and_no_stage(store: Path, tmp_path: Path, number: signal.Signals, when: str) -> None:
    folder = tmp_path / "server"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(store), *map(str, free_ports(5))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if when == "running":
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
        else:
            end = time.monotonic() + 60
            while not _processes(folder) and time.monotonic() < end:
                time.sleep(0.02)
        assert _processes(folder)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert "Interrupted" in errors
    assert not _processes(folder)
    assert {path.name for path in folder.iterdir()} <= {"logs", "config.properties", "torchserve.out"}
