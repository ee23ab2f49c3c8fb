"""A soak: many connections, mixed tasks and lengths, workers killed all along; every answer right and memory flat.

    python -m benchmarks.soak                                # 60 minutes, 32 connections, a worker killed every five
    python -m benchmarks.soak --minutes 3 --kill-every 60    # a short one, to see that it runs

Starts its own TorchServe with both samples from the model store; the connections are :class:`handler.client.Client`.

Answers: before the load each of some hundred cases is asked alone; under load a case's answer must be that one but
for rounding (``handler.canary.close``, 1e-3). Every other request is a text never sent before, so that caches turn
over; its answer must be of the right form: a label with a score, an answer that is the context at its offsets.

Memory is the resident set, read every ten seconds, of TorchServe's Java process and of each worker process. A worker's
life begins anew when it is killed, so growth is judged life by life: without its first quarter, in which caches fill
and allocators find their size, the median of the last third against that of the first. Lives shorter than half an
undisturbed one (the last, cut off by the end) are listed and not judged. The Java process is judged alike over the
whole run. And since what grew from life to life would show in none of them, the last whole life's median of each model
is held against that of its first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks import machine, results
from deploy.server import ROOT, Server
from handler.canary import close
from handler.client import Client

MODELS = ("ticket_routing", "document_qa")
CASES = 200
INTERVAL = 10.0
"""Seconds between two readings of the memory."""
WARM_UP = 0.25
"""Share of a life that is not counted: caches fill, allocators find their size."""
LEAST_READINGS = 8
"""Of a life that is judged."""
ALLOWED_GROWTH = 0.02
TOLERANCE = 1e-3
Case = tuple[str, Any, dict[str, Any]]
"""A model, a payload, options."""
_WORDS = (
    "parcel",
    "refund",
    "invoice",
    "password",
    "the",
    "a",
    "was",
    "not",
    "charged",
    "twice",
    "harbour",
    "founded",
    "in",
)


@dataclass
class Tally:
    """What the connections saw."""

    answers: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, seconds: float, fault: str = "") -> None:
        """Count one answer: ``right``, ``wrong``, or an exception's name; the first faults are kept."""
        with self.lock:
            self.answers[kind] += 1
            self.latencies.append(seconds)
            if fault and len(self.faults) < 20:
                self.faults.append(fault[:300])


@dataclass
class Life:
    """One process from its first reading to its last: its resident MiB."""

    name: str
    pid: int
    mib: list[float] = field(default_factory=list)

    @property
    def settled(self) -> list[float]:
        """Without the warm-up."""
        return self.mib[int(len(self.mib) * WARM_UP) :]

    @property
    def growth(self) -> float:
        """Relative, of the median of the last third of what is settled against that of the first third."""
        third = max(1, len(self.settled) // 3)
        return statistics.median(self.settled[-third:]) / statistics.median(self.settled[:third]) - 1

    def row(self, judged: bool) -> dict[str, Any]:
        """For the result."""
        median = round(statistics.median(self.settled), 1)
        return {
            "process": self.name, "pid": self.pid, "readings": len(self.mib), "median_mib": median,
            "growth": round(self.growth, 4), "judged": judged, "mib_each_minute": [round(mib) for mib in self.mib[::6]],
        }  # fmt: skip


def case(generator: random.Random) -> Case:
    """Mostly short, some long, some lists, some options; questions and tickets."""
    length = min(600, int(generator.lognormvariate(3.3, 1.0)) + 1)
    text = " ".join(generator.choices(_WORDS, k=length)) + f" {generator.randrange(10**9)}"
    if generator.random() < 0.3:
        question = {"question": "Who founded the harbour?", "context": text}
        if generator.random() < 0.1:
            return "document_qa", [question, {**question, "context": text[: len(text) // 2 + 1]}], {}
        return "document_qa", question, {"n_best": 3} if generator.random() < 0.2 else {}
    if generator.random() < 0.1:
        return "ticket_routing", [text, text[:40], text[-40:]], {}
    return "ticket_routing", {"text": text}, {"top_k": 2} if generator.random() < 0.2 else {}


def well_formed(payload: Any, answer: Any) -> bool:
    """Whether an answer can be one to ``payload``: of a list a list, of options several, scores within [0, 1]."""
    if isinstance(payload, list):
        same = isinstance(answer, list) and len(answer) == len(payload)
        return same and all(well_formed(own, one) for own, one in zip(payload, answer, strict=True))
    if isinstance(answer, list):  # several by top_k or n_best
        return bool(answer) and all(well_formed(payload, one) for one in answer)
    if not isinstance(answer, dict) or not 0 <= answer.get("score", -1) <= 1:
        return False
    if isinstance(payload, dict) and "context" in payload:
        return bool(payload["context"][answer["start"] : answer["end"]] == answer["answer"])
    return isinstance(answer.get("label"), str)


class Load:
    """The connections: each a client in a closed loop, half its requests cases with a known answer, half new texts."""

    def __init__(self, server: Server, connections: int, cases: int = CASES) -> None:
        self.tally = Tally()
        self._server = server
        self._stop = threading.Event()
        generator = random.Random(1)
        with self._client() as client:
            asked = [case(generator) for _ in range(cases)]
            self._known = [(one, client.predict(one[0], one[1], **one[2])) for one in asked]
        self._threads = [threading.Thread(target=self._connection, args=(seed,)) for seed in range(connections)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, every request answered."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self) -> Client:
        # Of a request that the front end has lost with a worker only silence tells: so it waits no longer than needed.
        return Client(self._server.url, key_file=self._server.folder / "key_file.json", timeout=30, deadline=180)

    def _connection(self, seed: int) -> None:
        generator = random.Random(f"connection {seed}")
        with self._client() as client:
            while not self._stop.is_set():
                known = generator.random() < 0.5
                (model, payload, options), expected = (
                    generator.choice(self._known) if known else (case(generator), None)
                )
                start = time.perf_counter()
                try:
                    answer = client.predict(model, payload, **options)
                except Exception as error:
                    self.tally.add(type(error).__name__, time.perf_counter() - start, repr(error))
                    continue
                right = close(answer, expected, TOLERANCE) if known else well_formed(payload, answer)
                self.tally.add(
                    "right" if right else "wrong", time.perf_counter() - start, "" if right else f"{model}: {answer}"
                )


def workers(server: Server) -> dict[int, str]:
    """Each model's workers by process id, as the management address knows them."""
    found = {}
    for model in MODELS:
        url = f"http://127.0.0.1:{server.ports[1]}/models/{model}"
        with suppress(requests.RequestException, ValueError, KeyError):
            description = requests.get(url, headers=server.headers("management"), timeout=10).json()[0]
            found |= {worker["pid"]: model for worker in description["workers"] if worker["status"] == "READY"}
    return found


def read_memory(server: Server, lives: dict[int, Life]) -> None:
    """One reading of the Java process and of every worker; a new process begins a life."""
    java = server.process()
    named = {**workers(server), **({java.pid: "java"} if java else {})}
    for pid, name in named.items():
        with suppress(psutil.Error):  # it has just ended
            mib = psutil.Process(pid).memory_info().rss / 2**20
            if mib:  # none has a process that was killed and is not yet buried
                lives.setdefault(pid, Life(name, pid)).mib.append(mib)


def kill_one(server: Server, turn: int) -> str | None:
    """Kill a worker, the models in turn; its model, None where none is ready."""
    model = MODELS[turn % len(MODELS)]
    mine = [pid for pid, name in workers(server).items() if name == model]
    for pid in mine[:1]:
        os.kill(pid, signal.SIGKILL)
        return model
    return None


def watch(
    seconds: float, kill_every: float, read: Callable[[], None], kill: Callable[[int], str | None]
) -> list[dict[str, Any]]:
    """Read the memory and kill workers for ``seconds``; when which was killed."""
    begun = time.monotonic()
    killed: list[dict[str, Any]] = []
    next_kill, next_reading = kill_every, INTERVAL
    while (now := time.monotonic() - begun) < seconds:
        if kill_every and now >= next_kill and now < seconds - INTERVAL:
            killed.append({"second": round(now), "model": kill(len(killed))})
            next_kill += kill_every
        if now >= next_reading:
            read()
            next_reading += INTERVAL
        time.sleep(0.2)
    return killed


def judge(lives: Sequence[Life], undisturbed: float) -> dict[str, Any]:
    """The figures of memory; ``undisturbed``: seconds that a worker lives where its turn comes regularly."""
    least = max(LEAST_READINGS, undisturbed / INTERVAL / 2)
    judged = [life for life in lives if len(life.mib) >= least]
    listed = [life for life in lives if len(life.mib) > 2]
    between = {}
    for model in MODELS:
        medians = [statistics.median(life.settled) for life in judged if life.name == model]
        if len(medians) > 1:
            between[model] = round(medians[-1] / medians[0] - 1, 4)
    return {
        "lives": [life.row(life in judged) for life in listed],
        "worker_growth": round(max((life.growth for life in judged if life.name != "java"), default=0.0), 4),
        "java_growth": round(max((life.growth for life in judged if life.name == "java"), default=0.0), 4),
        "growth_between_lives": between,
    }


def soak(server: Server, minutes: float, connections: int, kill_every: float) -> dict[str, Any]:
    """Run it and return the figures."""
    load = Load(server, connections)
    lives: dict[int, Life] = {}
    load.start()
    try:
        killed = watch(
            60 * minutes, kill_every, lambda: read_memory(server, lives), lambda turn: kill_one(server, turn)
        )
    finally:
        load.stop()
    ordered = sorted(load.tally.latencies)
    seconds = 60 * minutes
    return {
        "minutes": minutes,
        "connections": connections,
        "kill_every": kill_every,
        "killed": killed,
        "requests": len(ordered),
        "answers": dict(load.tally.answers),
        "faults": load.tally.faults,
        "milliseconds": {p: round(1e3 * ordered[int(len(ordered) * p / 100)], 1) for p in (50, 95, 99)},
        "longest_seconds": round(ordered[-1], 1),
        **judge(list(lives.values()), min(seconds, kill_every * len(MODELS) or seconds)),
    }


def good(figures: dict[str, Any]) -> bool:
    """Whether every answer was right and no memory grew; of too short a run nothing is judged, so it is not good."""
    if set(figures["answers"]) != {"right"} or any(one["model"] is None for one in figures["killed"]):
        return False
    judged = {life["process"] for life in figures["lives"] if life["judged"]}
    growths = [figures["worker_growth"], figures["java_growth"], *figures["growth_between_lives"].values()]
    return judged == {"java", *MODELS} and max(growths) <= ALLOWED_GROWTH


def main() -> int:
    """Write and print the figures; returns 1 where an answer was not right or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--kill-every", type=float, default=300, metavar="SECONDS", help="0: never")
    parser.add_argument("--store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--first-port", type=int, default=28080, help="five ports from here on are used")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    port = options.first_port
    with tempfile.TemporaryDirectory() as folder:
        ports, grpc_ports = (port, port + 1, port + 2), (port + 3, port + 4)
        with Server(Path(folder), options.store, ports=ports, grpc_ports=grpc_ports) as server:
            server.start(MODELS)
            figures = soak(server, options.minutes, options.connections, options.kill_every)
    result = {**machine.facts("cpu", machine.threads_available()), "rows": [figures]}
    path = results.save("soak", result, options.output)
    print(json.dumps(figures, ensure_ascii=False))
    print(path)
    return int(not good(figures))


if __name__ == "__main__":
    sys.exit(main())
