"""A soak: many connections, mixed lengths, for a long time; no error and no growth of memory are wanted.

    python -m benchmarks.soak --minutes 20 --connections 32

Starts its own TorchServe with both samples from the model store. Memory is the resident set of the model workers
(and, apart, of TorchServe's Java process), read every ten seconds; the growth is that of the median over the last
tenth of the time against the median over the tenth after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks import machine, results
from deploy.server import ROOT, Server

MODELS = ("ticket_routing", "document_qa")
WARM_UP = 0.1
"""Share of the time that is not counted: caches fill, allocators find their size."""
ALLOWED_GROWTH = 0.02
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

    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: str, seconds: float) -> None:
        """Count one answer."""
        with self.lock:
            self.statuses[status] += 1
            self.latencies.append(seconds)


def request(generator: random.Random) -> tuple[str, Any]:
    """A model and a payload: mostly short, some long, some lists."""
    length = min(600, int(generator.lognormvariate(3.3, 1.0)) + 1)
    text = " ".join(generator.choices(_WORDS, k=length)) + f" {generator.randrange(10**9)}"
    if generator.random() < 0.3:
        return "document_qa", {"question": "Who founded the harbour?", "context": text}
    if generator.random() < 0.1:
        return "ticket_routing", [text, text[:40], text[-40:]]
    return "ticket_routing", {"text": text}


def connection(server: Server, seed: int, stop: threading.Event, tally: Tally) -> None:
    """One client in a closed loop over one kept-alive connection."""
    generator = random.Random(seed)
    headers = server.headers()
    with requests.Session() as session:
        while not stop.is_set():
            model, payload = request(generator)
            start = time.perf_counter()
            try:
                status = str(
                    session.post(
                        f"{server.url}/predictions/{model}", json=payload, headers=headers, timeout=60
                    ).status_code
                )
            except requests.RequestException as error:
                status = type(error).__name__
            tally.add(status, time.perf_counter() - start)


def memory(server: Server) -> tuple[float, float]:
    """Resident MiB of the workers together, and of the server's Java process."""
    java = server.process()
    workers = sum(psutil.Process(pid).memory_info().rss for pid in server.worker_pids())
    return workers / 2**20, (java.memory_info().rss if java else 0) / 2**20


def growth(samples: list[float]) -> float:
    """Relative, between the tenth after the warm-up and the last tenth."""
    tenth = max(1, len(samples) // 10)
    first = int(len(samples) * WARM_UP)
    before = statistics.median(samples[first : first + tenth])
    return statistics.median(samples[-tenth:]) / before - 1


def soak(server: Server, minutes: float, connections: int) -> dict[str, Any]:
    """Run it and return the figures."""
    stop, tally = threading.Event(), Tally()
    clients = [threading.Thread(target=connection, args=(server, i, stop, tally)) for i in range(connections)]
    workers = server.worker_pids()
    for client in clients:
        client.start()
    samples = []
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        time.sleep(min(10.0, 6 * minutes))
        samples.append(memory(server))
    stop.set()
    for client in clients:
        client.join()
    ordered = sorted(tally.latencies)
    return {
        "minutes": minutes,
        "connections": connections,
        "requests": len(ordered),
        "answers": dict(tally.statuses),
        "milliseconds": {p: round(1e3 * ordered[int(len(ordered) * p / 100)], 1) for p in (50, 95, 99)},
        "worker_mib": [round(workers) for workers, _ in samples],
        "worker_growth": round(growth([workers for workers, _ in samples]), 4),
        "java_mib": [round(java) for _, java in samples],
        "java_growth": round(growth([java for _, java in samples]), 4),
        "same_workers": server.worker_pids() == workers,
    }


def main() -> int:
    """Write and print the figures; returns 1 where an answer was no 200, a worker died or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--first-port", type=int, default=28080, help="five ports from here on are used")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    port = options.first_port
    with tempfile.TemporaryDirectory() as folder:
        ports, grpc_ports = (port, port + 1, port + 2), (port + 3, port + 4)
        with Server(Path(folder), options.store, ports=ports, grpc_ports=grpc_ports) as server:
            server.start(MODELS)
            figures = soak(server, options.minutes, options.connections)
    result = {**machine.facts("cpu", machine.threads_available()), "rows": [figures]}
    path = results.save("soak", result, options.output)
    print(json.dumps(figures))
    print(path)
    good = set(figures["answers"]) == {"200"} and figures["same_workers"]
    return int(not good or max(figures["worker_growth"], figures["java_growth"]) > ALLOWED_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
