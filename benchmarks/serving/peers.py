"""Servers that are one command: this product's others than TorchServe, LitServe, infinity."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from abc import abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import requests

from benchmarks.machine import ROOT
from benchmarks.serving.load import Refused, Target
from benchmarks.serving.plain import TORCH_TYPES
from benchmarks.serving.prepare import BATCH
from benchmarks.serving.servers import PORTS, Answer, Served

_VERSIONS = """
import importlib.metadata, json
print(json.dumps({name: importlib.metadata.version(name) for name in ("infinity-emb", "torch", "transformers")}))
"""


class Command(Served):
    """A server that is one command listening on a port."""

    host, port = "127.0.0.1", PORTS[0]
    path: str
    health = "/health"
    started = 180.0
    stopped = 5.0
    """Seconds: a server that still has requests to answer may want more, and is killed."""

    def __init__(self, command: list[str], threads: int, log: Path) -> None:
        self.command = command
        self.log = log
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides its speed, as a result keeps it."""

    def __enter__(self) -> Command:
        with socket.socket() as probe:
            if probe.connect_ex((self.host, self.port)) == 0:
                raise Refused(f"port {self.port} is taken")
        with self.log.open("w") as output:
            self.process = psutil.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + self.started
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._healthy():
                return self
            time.sleep(0.5)
        self.__exit__(None, None, None)
        last = (self.log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise Refused(f"{Path(self.command[0]).name} did not start: {last[-200:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = self._family()
        if self.process.poll() is None:
            self.process.terminate()
        _, alive = psutil.wait_procs(family, timeout=self.stopped)
        for survivor in alive:
            survivor.kill()
        psutil.wait_procs(alive, timeout=self.stopped)  # the next server wants the port

    @property
    def target(self) -> Target:
        """See Served."""
        return Target(f"http://{self.host}:{self.port}", self.path, {})

    def processor_seconds(self) -> dict[str, float]:
        """That of all of its processes together."""
        try:
            times = [process.cpu_times() for process in self._family()]
        except psutil.Error:  # it has just ended
            return {}
        return {"server": sum(spent.user + spent.system for spent in times)} if times else {}

    def _family(self) -> list[psutil.Process]:
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.Error:
            return []

    def _healthy(self) -> bool:
        try:
            return requests.get(f"http://{self.host}:{self.port}{self.health}", timeout=2).ok
        except requests.RequestException:
            return False


class Own(Command):
    """An archive behind uvicorn (``http``) or Ray Serve (``ray``), with the workers and threads that ``builder tune``
    has written into it."""

    path = "/predictions/model"
    health = "/v2/health/ready"
    started = stopped = 400.0

    def __init__(self, server: str, archive: Path, folder: Path) -> None:
        from handler.servers.http import shares  # which needs uvicorn, and this module is loaded for other servers, too

        self.workers, self.own = shares(archive, None, None)
        module, more = "http", ["--device", "cpu"]
        if server == "ray":
            replicas = str(self.workers)
            module, more = "ray_serve", ["--min-replicas", replicas, "--max-replicas", replicas]
            more += ["--threads", str(self.own["handler"]["threads"])]
        command = [sys.executable, "-m", f"handler.servers.{module}", f"model={archive}", "--port", str(self.port)]
        folder.mkdir(exist_ok=True)
        super().__init__([*command, *more], 1, folder / "log.txt")
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)}

    def settings(self) -> dict[str, Any]:
        """See Command."""
        return {"workers": self.workers, **self.own["handler"]}

    def __enter__(self) -> Own:
        super().__enter__()
        time.sleep(2)  # until the other processes are ready, too
        return self


class LitServe(Command):
    """transformers behind LitServe with its batching (``litserve_app``), one worker for each of ``threads``."""

    path = "/predict"

    def __init__(self, model: Path, data_type: str, longest: int, threads: int, folder: Path) -> None:
        self.workers = threads
        facts = [self.port, threads, BATCH["ori"], longest, TORCH_TYPES[data_type]]
        command = [sys.executable, "-m", "benchmarks.serving.litserve_app", str(model.resolve()), *map(str, facts)]
        super().__init__(command, 1, folder / "litserve.log")
        self.environment["TOKENIZERS_PARALLELISM"] = "false"

    def settings(self) -> dict[str, Any]:
        """See Command."""
        return {"workers": self.workers, "threads": 1, "batch": BATCH["ori"]}


class Infinity(Command):
    """infinity's classifier; ``executable`` is ``infinity_emb`` of an environment of its own.

    docs/benchmarks.md says how each of its options was chosen.
    """

    path = "/classify"
    options = ("--engine", "torch", "--no-compile", "--no-bettertransformer", "--batch-size", "8", "--no-model-warmup")

    def __init__(self, executable: Path, model: Path, data_type: str, threads: int, folder: Path) -> None:
        self.python = executable.absolute().with_name("python")
        self.threads = threads
        command = [
            str(executable.absolute()), "v2", "--model-id", str(model.resolve()), "--served-model-name", "model",
            "--host", self.host, "--port", str(self.port), "--log-level", "warning", "--device", "cpu",
            "--dtype", TORCH_TYPES[data_type], *self.options,
        ]  # fmt: skip
        super().__init__(command, threads, folder / "infinity.log")
        # Its other threads, and the load generator, want the cores that waiting threads of the product would spin on.
        self.environment |= {"OMP_WAIT_POLICY": "passive"}
        # Nothing is sent, fetched or left in the checkout: no usage statistics, no hub's files, no cache.
        self.environment |= {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
        self.environment |= {"INFINITY_HOME": str(folder)}
        self.environment.pop("PYTHONPATH")

    def settings(self) -> dict[str, Any]:
        """See Command; its environment's versions are other than this one's."""
        said = subprocess.run([str(self.python), "-c", _VERSIONS], capture_output=True, text=True, check=True)
        return {"threads": self.threads, "options": list(self.options), "versions": json.loads(said.stdout)}

    def body(self, payload: dict[str, str]) -> dict[str, object]:
        """See Served."""
        return {"model": "model", "input": [payload["text"]]}

    def answer(self, reply: Any) -> Answer:
        """Of all labels with their scores the best."""
        best = max(reply["data"][0], key=lambda entry: entry["score"])
        return Answer(best["label"], best["score"])
