"""Archives under a real TorchServe, on the GPU beside the CPU: the same answers, and what many connections get.

    python -m benchmarks.gpu.served --store model_store --models ticket_routing document_qa

Each archive is served by one worker, first on the CPU and then on the GPU, by the same file. Every text is asked of
both servers. Afterwards clients in a closed loop (1, 64 and 256 kept-alive connections) ask the GPU's server, spread
over processes so that Python does not bound them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import requests

from benchmarks import machine, results
from deploy.server import ROOT, Server

CONNECTIONS = (1, 64, 256)
CONNECTIONS_A_PROCESS = 16
COMPARED = 100
"""Requests of each archive that both servers answer."""
ALLOWED = 0.01
"""Largest difference of a score: both types round, the order of their sums differs."""
QUESTION = "Who founded the harbour?"


def payloads(model: str, number: int, seed: int = 0) -> list[Any]:
    """Requests of mixed length made of the samples' own dev texts, the same for every server."""
    generator = random.Random(seed)
    tickets = [line.split("\t")[0] for line in (ROOT / "samples/data/tickets.tsv").read_text().splitlines()[1:]]
    drawn = [" ".join(generator.sample(tickets, generator.choice((1, 1, 2, 4)))) for _ in range(number)]
    if "qa" not in model:
        return [{"text": text} for text in drawn]
    documents = json.loads((ROOT / "samples/data/documents-dev.json").read_text())["data"]
    paragraphs = [paragraph for document in documents for paragraph in document["paragraphs"]]
    asked = [(p["context"], q["question"]) for p in paragraphs for q in p["qas"]]
    return [{"question": question, "context": context} for context, question in generator.choices(asked, k=number)]


def ask(server: Server, model: str, bodies: Sequence[Any]) -> list[Any]:
    """Every body's answer. Raises requests.HTTPError for one that is no 200."""
    answers = []
    with requests.Session() as session:
        for body in bodies:
            answer = session.post(f"{server.url}/predictions/{model}", json=body, headers=server.headers(), timeout=60)
            answer.raise_for_status()
            answers.append(answer.json())
    return answers


def device_of(server: Server, model: str) -> str:
    """Where the worker says that its model runs, such as ``cuda:0``."""
    url = f"http://127.0.0.1:{server.ports[1]}/models/{model}?customized=true"
    answer = requests.get(url, headers=server.headers("management"), timeout=30)
    answer.raise_for_status()
    metadata = answer.json()[0]["customizedMetadata"]
    return str((json.loads(metadata) if isinstance(metadata, str) else metadata)["device"])


def difference(one: Any, other: Any) -> float:
    """The largest difference of two numbers at the same place of two answers; infinite where anything else differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if one == other else float("inf")


def load(server: Server, model: str, connections: int, seconds: float) -> dict[str, Any]:
    """A closed loop over so many connections; requests a second and milliseconds of those behind the warm-up."""
    shares = [min(CONNECTIONS_A_PROCESS, connections - at) for at in range(0, connections, CONNECTIONS_A_PROCESS)]
    begin = time.time() + 1
    jobs = [(server.url, model, server.headers(), share, begin, seconds, n) for n, share in enumerate(shares)]
    with ProcessPoolExecutor(len(jobs), mp_context=multiprocessing.get_context("fork")) as pool:
        parts = list(pool.map(_clients, jobs))
    latencies = sorted(latency for part, _ in parts for latency in part)
    statuses = sum((Counter(counted) for _, counted in parts), Counter())
    return {
        "connections": connections,
        "requests_per_second": round(len(latencies) / seconds, 1),
        "milliseconds": {p: round(1e3 * latencies[int(len(latencies) * p / 100)], 2) for p in (50, 95, 99)},
        "answers": dict(statuses),
    }


def _clients(job: tuple[str, str, dict[str, str], int, float, float, int]) -> tuple[list[float], dict[str, int]]:
    url, model, headers, connections, begin, seconds, seed = job
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    lock = threading.Lock()

    def client(number: int) -> None:
        bodies = payloads(model, 50, seed=1000 * seed + number)
        time.sleep(max(0.0, begin - time.time()))
        own, seen = [], Counter[str]()
        with requests.Session() as session:
            index = 0
            while (start := time.time()) < begin + 1 + seconds:
                body = bodies[index % len(bodies)]
                index += 1
                try:
                    answer = session.post(f"{url}/predictions/{model}", json=body, headers=headers, timeout=60)
                    seen[str(answer.status_code)] += 1
                except requests.RequestException as error:
                    seen[type(error).__name__] += 1
                if start >= begin + 1:  # the first second warms up
                    own.append(time.time() - start)
        with lock:
            latencies.extend(own)
            statuses.update(seen)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, dict(statuses)


def main() -> int:
    """Write and print the figures; returns 1 where an answer differs, fails, or a worker died."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--first-port", type=int, default=28080, help="five ports from here on are used")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    port = options.first_port
    ports = {"ports": (port, port + 1, port + 2), "grpc_ports": (port + 3, port + 4)}
    bodies = {model: payloads(model, COMPARED) for model in options.models}
    with tempfile.TemporaryDirectory() as folder:
        with Server(Path(folder) / "cpu", options.store, settings={"number_of_gpu": "0"}, **ports) as server:
            server.start(options.models)
            expected = {model: ask(server, model, bodies[model]) for model in options.models}
        rows = []
        with Server(Path(folder) / "gpu", options.store, **ports) as server:
            server.start(options.models)
            workers = server.worker_pids()
            for model in options.models:
                got = ask(server, model, bodies[model])
                differences = [difference(a, b) for a, b in zip(got, expected[model], strict=True)]
                row = {
                    "model": model,
                    "compared": len(differences),
                    "worst_difference": max(differences),
                    "median_difference": statistics.median(differences),
                }
                for connections in CONNECTIONS:
                    rows.append(row | load(server, model, connections, options.seconds))
                    print(json.dumps(rows[-1]), flush=True)
            same_workers = server.worker_pids() == workers
            devices = {model: device_of(server, model) for model in options.models}
    result = {**machine.facts("cuda", machine.threads_available()), "rows": rows, "devices": devices}
    result["same_workers"] = same_workers
    print(results.save("served", result, options.output))
    good = all(set(row["answers"]) == {"200"} and row["worst_difference"] <= ALLOWED for row in rows)
    print(f"same workers: {same_workers}; devices: {devices}")
    return int(not (good and same_workers and all(device.startswith("cuda") for device in devices.values())))


if __name__ == "__main__":
    sys.exit(main())
