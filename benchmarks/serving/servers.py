"""What a server under load must offer, and archives on TorchServe."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import requests

from benchmarks.serving.load import Refused, Target
from deploy.server import Server, ServerError

PORTS = (18080, 18081, 18082)
"""Other than a server's that may be running here already."""
_METRIC = re.compile(r"^(\w+)(?:\{([^}]*)\})? ([0-9.eE+-]+)$", re.MULTILINE)
_STAGE = re.compile(r'Stage="(\w+)"')


@dataclass(frozen=True)
class Answer:
    """What a text was classified as; ``score`` None where the server says none."""

    label: str
    score: float | None


class Served(ABC):
    """A running server; a context manager. Entering raises Refused where it does not start."""

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

    def answer(self, reply: Any) -> Answer:
        """This server's reply, decoded from JSON. Raises KeyError, IndexError or TypeError for one without a label."""
        return Answer(reply["label"], reply.get("score"))

    def metrics(self) -> dict[str, float]:
        """The server's own figures by name, summed over labels; empty where it has none."""
        return {}

    def processor_seconds(self) -> dict[str, float]:
        """Processor time so far of the server's parts by name; empty where it cannot be told."""
        return {}


class TorchServe(Served):
    """One archive on a TorchServe of its own."""

    def __init__(self, archive: Path, folder: Path, cpu: bool = False) -> None:
        """``cpu``: leave the machine's GPUs alone."""
        self.name = archive.stem
        settings = {"number_of_gpu": "0"} if cpu else {}
        self.server = Server(folder, archive.parent, ports=PORTS, grpc_ports=(17070, 17071), settings=settings)

    def __enter__(self) -> TorchServe:
        try:
            self.server.start([self.name])
        except ServerError as error:
            raise Refused(str(error)) from error
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
    """Prometheus' text format: values by name (NAME:STAGE where there is a label Stage), summed over other labels."""
    values: dict[str, float] = {}
    for name, labels, value in _METRIC.findall(text):
        if stage := _STAGE.search(labels):
            name = f"{name}:{stage[1]}"
        values[name] = values.get(name, 0.0) + float(value)
    return values
