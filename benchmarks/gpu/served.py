"""Archives under a real TorchServe, on the GPU beside the CPU: the same answers, and what many connections get.

    python -m benchmarks.gpu.served --store model_store --models ticket_routing document_qa

Each archive is served by one worker, first on the CPU and then on the GPU, from the same file, and both are asked the
same requests. Afterwards clients in a closed loop (1, 64 and 256 kept-alive connections) ask the GPU's server these
requests, spread over processes so that Python does not bound them; there too every answer is held against the CPU's.
Archives named by ``--beside``, such as the stock encoder's, are put under load on the GPU only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
import torch

from benchmarks import machine, results
from benchmarks.gpu.connections import Load, difference, load
from builder.inspection import read_facts
from deploy.server import ROOT, Server

CONNECTIONS = (1, 64, 256)
COMPARED = 100
"""Requests of each archive that both servers answer."""
ALLOWED = 0.01
"""Largest difference of a score: both devices round to the served type, and sum in another order."""


@dataclass(frozen=True)
class Comparison:
    """Answers of the GPU's server beside the CPU's: how many, how many with the same label (or place in the text),
    and the differences of the scores of those."""

    compared: int
    same: int
    worst: float
    median: float

    @classmethod
    def of(cls, answers: Sequence[Any], expected: Sequence[Any]) -> Comparison:
        """Of two servers' answers to the same requests."""
        found = [difference(a, b) for a, b in zip(answers, expected, strict=True)]
        finite = [value for value in found if value != float("inf")]
        return cls(len(found), len(finite), max(finite, default=0.0), statistics.median(finite or [0.0]))

    @property
    def passed(self) -> bool:
        """All the same, and no score further off than allowed."""
        return self.same == self.compared and self.worst <= ALLOWED


def payloads(task: str, number: int, seed: int = 0) -> list[Any]:
    """Requests of mixed length made of the samples' own dev texts, the same for every server."""
    generator = random.Random(seed)
    if task == "question_answering":
        documents = json.loads((ROOT / "samples/data/documents-dev.json").read_text())["data"]
        paragraphs = [paragraph for document in documents for paragraph in document["paragraphs"]]
        asked = [(p["context"], q["question"]) for p in paragraphs for q in p["qas"]]
        return [{"question": question, "context": context} for context, question in generator.choices(asked, k=number)]
    tickets = [line.split("\t")[0] for line in (ROOT / "samples/data/tickets.tsv").read_text().splitlines()[1:]]
    drawn = [" ".join(generator.sample(tickets, generator.choice((1, 1, 2, 4)))) for _ in range(number)]
    return [{"text": text} for text in drawn]


def ask(server: Server, model: str, bodies: Sequence[Any]) -> list[Any]:
    """Every body's answer, one after the other. Raises requests.HTTPError for one that is no 200."""
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


def archived_digest(archive: Path) -> str:
    """SHA-256 of the traced file in an archive."""
    with zipfile.ZipFile(archive) as packed, packed.open("model.pt") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extracted_digest(server: Server, model: str) -> str:
    """SHA-256 of the traced file that the server has unpacked for its worker; empty where there is none."""
    for facts in (server.folder / "extracted").rglob("archive.json"):
        if json.loads(facts.read_text())["name"] == model:
            with (facts.parent / "model.pt").open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def said(server: Server, model: str) -> str:
    """The worker's own line on which device and library it took; empty where it logged none."""
    log = server.folder / "logs" / "model_log.log"
    lines = [line for line in log.read_text(errors="replace").splitlines() if f"{model} runs on " in line]
    return lines[-1].split("MODEL_LOG - ")[-1] if lines else ""


def serve_on_cpu(folder: Path, options: argparse.Namespace, bodies: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The CPU's answers of every model that is compared."""
    with Server(folder, options.store, settings={"number_of_gpu": "0"}, **_ports(options)) as server:
        server.start(options.models)
        for model in options.models:
            print(f"cpu: {said(server, model)}", flush=True)
        return {model: ask(server, model, bodies[model]) for model in options.models}


def serve_on_gpu(
    folder: Path, options: argparse.Namespace, bodies: dict[str, list[Any]], expected: dict[str, list[Any]]
) -> dict[str, Any]:
    """Compare and load every model; ``expected`` are the CPU's answers, as far as there are any."""
    archives: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with Server(folder, options.store, **_ports(options)) as server:
        server.start(list(bodies))
        workers = server.worker_pids()
        for model in bodies:
            answers = ask(server, model, bodies[model])
            compared = Comparison.of(answers, expected[model]) if model in expected else None
            archives[model] = {
                "archived_sha256": archived_digest(options.store / f"{model}.mar"),
                "served_sha256": extracted_digest(server, model),
                "torch_built": read_facts(options.store / f"{model}.mar").torch.built,
                "device": device_of(server, model),
                "worker": said(server, model),
                "answers": asdict(compared) if compared else None,
                "passed": compared is None or compared.passed,
            }
            print(json.dumps({"model": model, **archives[model]}), flush=True)
        for model in bodies:
            reference = expected.get(model) or ask(server, model, bodies[model])
            work = Load(f"{server.url}/predictions/{model}", server.headers(), bodies[model], reference, ALLOWED)
            for connections in options.connections:
                rows.append({"model": model, **load(work, connections, options.seconds)})
                print(json.dumps(rows[-1]), flush=True)
        return {"archives": archives, "rows": rows, "same_workers": server.worker_pids() == workers}


def good(result: dict[str, Any]) -> bool:
    """Every answer the CPU's, every worker alive and on a GPU, every file the archive's."""
    archives = result["archives"].values()
    answered = all(set(row["answers"]) == {"200"} for row in result["rows"])
    unchanged = all(archive["archived_sha256"] == archive["served_sha256"] for archive in archives)
    on_gpu = all(archive["device"].startswith("cuda") for archive in archives)
    equal = all(archive["passed"] for archive in archives)
    return answered and unchanged and on_gpu and equal and result["same_workers"]


def _ports(options: argparse.Namespace) -> dict[str, Any]:
    port = options.first_port
    return {"ports": (port, port + 1, port + 2), "grpc_ports": (port + 3, port + 4)}


def main() -> int:
    """Write and print the figures; returns 1 where an answer differs, fails, or a worker died."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--models", nargs="+", required=True, help="archives by name")
    parser.add_argument("--beside", nargs="*", default=[], help="archives that the GPU alone serves")
    parser.add_argument("--connections", nargs="+", type=int, default=CONNECTIONS)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--first-port", type=int, default=28080, help="five ports from here on are used")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs (default: none)")
    options = parser.parse_args()
    tasks = {model: read_facts(options.store / f"{model}.mar").task for model in (*options.models, *options.beside)}
    bodies = {model: payloads(task, COMPARED) for model, task in tasks.items()}
    with tempfile.TemporaryDirectory() as folder:
        servers = options.logs or Path(folder)
        expected = serve_on_cpu(servers / "cpu", options, bodies)
        result = serve_on_gpu(servers / "gpu", options, bodies, expected)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {**machine.facts(device, machine.threads_available()), **result}
    result["settings"] = {"seconds": options.seconds, "allowed_difference": ALLOWED}
    print(results.save("served", result, options.output))
    print("passed" if good(result) else "FAILED")
    return int(not good(result))


if __name__ == "__main__":
    sys.exit(main())
