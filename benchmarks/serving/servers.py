"""The servers that are loaded: the product's archives on TorchServe, and two other servers with the same model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import psutil
import requests

from benchmarks.machine import ROOT
from benchmarks.serving.load import Target
from deploy.server import Server

PORTS = (18080, 18081, 18082)
"""Other than a server's that may be running here already."""
_STARTED = 180.0
_METRIC = re.compile(r"^(\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)


class Served(ABC):
    """A running server; a context manager."""

    @abstractmethod
    def __enter__(self) -> Served: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    @abstractmethod
    def target(self) -> Target:
        """Where to send requests."""

    def body(self, payload: dict[str, str]) -> dict[str, object]:
        """The product's payload as this server wants it."""
        return dict(payload)

    def metrics(self) -> dict[str, float]:
        """The server's own figures by name, summed over labels; empty where it has none."""
        return {}

    def processor_seconds(self) -> dict[str, float]:
        """Processor time so far of the server's parts by name; empty where it cannot be told."""
        return {}


class TorchServe(Served):
    """One archive on a TorchServe of its own."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.name = archive.stem
        self.server = Server(folder, archive.parent, ports=PORTS, grpc_ports=(17070, 17071))

    def __enter__(self) -> TorchServe:
        self.server.start([self.name])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop()

    @property
    def target(self) -> Target:
        """See Served."""
        return Target(self.server.url, f"/predictions/{self.name}", self.server.headers())

    def metrics(self) -> dict[str, float]:
        """See Served."""
        answer = requests.get(f"http://127.0.0.1:{PORTS[2]}/metrics", headers=self.server.headers(), timeout=10)
        return parse_metrics(answer.text)

    def processor_seconds(self) -> dict[str, float]:
        """The Java front end's, and that of the workers together."""
        front_end = self.server.process()
        if front_end is None:
            return {}
        workers = (psutil.Process(pid).cpu_times() for pid in self.server.worker_pids())
        own = front_end.cpu_times()
        return {"front_end": own.user + own.system, "workers": sum(times.user + times.system for times in workers)}


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus' text format: values by name, summed over labels."""
    values: dict[str, float] = {}
    for name, value in _METRIC.findall(text):
        values[name] = values.get(name, 0.0) + float(value)
    return values


class _Command(Served):
    """A server that is one command listening on a port."""

    url = f"http://127.0.0.1:{PORTS[0]}"
    health = "/health"

    def __init__(self, command: list[str], threads: int, log: Path) -> None:
        self.command = command
        self.log = log
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}

    def __enter__(self) -> _Command:
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _STARTED
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if requests.get(self.url + self.health, timeout=2).ok:
                    return self
            except requests.RequestException:
                time.sleep(0.5)
        self.__exit__(None, None, None)
        last = (self.log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"{self.command[0]} did not start: {last[-200:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = [*psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []
        self.process.terminate()
        _, alive = psutil.wait_procs([*family, psutil.Process(self.process.pid)] if family else [], timeout=5)
        for survivor in alive:
            survivor.kill()
        self.process.wait()


class LitServe(_Command):
    """transformers behind LitServe with its batching (``litserve_app``)."""

    def __init__(self, model: Path, threads: int, folder: Path) -> None:
        arguments = [str(model.resolve()), str(PORTS[0]), str(threads)]
        command = [sys.executable, "-m", "benchmarks.serving.litserve_app", *arguments]
        super().__init__(command, threads, folder / "litserve.log")

    @property
    def target(self) -> Target:
        """See Served."""
        return Target(self.url, "/predict", {})


class Infinity(_Command):
    """infinity's classifier; ``executable`` is ``infinity_emb`` of an environment of its own."""

    def __init__(self, executable: Path, model: Path, threads: int, folder: Path) -> None:
        self.model = str(model.resolve())
        command = [
            str(executable), "v2", "--model-id", self.model, "--served-model-name", "model", "--port", str(PORTS[0]),
            "--engine", "torch", "--device", "cpu", "--batch-size", "32", "--no-model-warmup",
        ]  # fmt: skip
        super().__init__(command, threads, folder / "infinity.log")
        # Nothing is sent or fetched: neither usage statistics nor a hub's files.
        self.environment |= {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
        self.environment.pop("PYTHONPATH")

    @property
    def target(self) -> Target:
        """See Served."""
        return Target(self.url, "/classify", {})

    def body(self, payload: dict[str, str]) -> dict[str, object]:
        """See Served."""
        return {"model": "model", "input": [payload["text"]]}
