"""What a server on this machine's GPU must show, in one run: its throughput and latency beside an empty handler's, a
request's time in process with the handler's own share, and the memory of its workers.

    python -m benchmarks.gpu.targets --output OUT

Builds a classifier of BERT-base's size (random weights: right for time, and for nothing else) with the builder's
default settings, serves it by TorchServe, and loads it with wrk (``EFFT_WRK`` may name the program). The libraries are
compiled, or those that ``EFFT_CPU_LIBRARY`` and ``EFFT_CUDA_LIBRARY`` name. ``--device cpu`` runs all of it on the CPU,
to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
import torch
import yaml

from benchmarks import machine, results, texts
from benchmarks.gpu import served_child
from benchmarks.serving import empty, load
from deploy.server import ROOT, Server

CONNECTIONS = (1, 64, 256, 512)
TOKENS = (10, 64)
"""Lengths are uniform between these two, 37 on average."""
LIMITS = {
    "requests_per_second_256": (14_000.0, "at least"),
    "share_of_empty_256": (0.80, "at least"),
    "one_connection_above_empty_ms": (1.0, "at most"),
    "predict_1_ms": (0.45, "at most"),
    "predict_32_ms": (1.6, "at most"),
    "memory_over_weights": (1.5, "at most"),
}
"""What is wanted on an H200, with 16 cores."""


def asked(tokenizer_file: Path, number: int = 512) -> list[str]:
    """The sample's tickets, cut and joined to the lengths; the same every time."""
    generator = random.Random(0)
    lengths = [generator.randint(*TOKENS) for _ in range(number)]
    return texts.of_lengths(lengths, texts.tickets(), tokenizer_file, generator)


def child(step: str, *arguments: object) -> dict[str, Any]:
    """A step in a process of its own, which prints one line of JSON. Raises ValueError with its last line."""
    command = [sys.executable, "-m", "benchmarks.gpu.served_child", step, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or [f"{step} failed"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def used_memory(gpu: bool) -> int:
    """Bytes in use on the GPU, by all processes."""
    if not gpu:
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def serve(
    archive: Path, bodies: Sequence[str], options: argparse.Namespace, folder: Path
) -> tuple[list[dict[str, Any]], int, int]:
    """Closed loops of every number of connections; the rows, the workers, and the GPU memory that they have taken."""
    port = options.first_port
    ports = (port, port + 1, port + 2)
    settings = {"number_of_gpu": "0"} if options.device == "cpu" else {}
    before = used_memory(options.device == "cuda")
    rows = []
    with Server(folder, archive.parent, ports=ports, grpc_ports=(port + 3, port + 4), settings=settings) as server:
        server.start([archive.stem], timeout=400)
        target = load.Target(server.url, f"/predictions/{archive.stem}", server.headers())
        check(target, bodies[0])
        load.closed(target, bodies, max(options.connections), options.warm_up, options.wrk_threads, warm_up=0)
        for number in options.connections:
            loop = load.closed(target, bodies, number, options.seconds, options.wrk_threads, warm_up=1)
            rows.append({"server": archive.stem, **load.row(loop)})
            print(json.dumps(rows[-1]), flush=True)
        return rows, len(server.worker_pids()), used_memory(options.device == "cuda") - before


def check(target: load.Target, body: str) -> None:
    """Raises ValueError where the server does not answer a request well."""
    headers = {**target.headers, "Content-Type": "application/json"}
    answer = requests.post(target.url + target.path, data=body, headers=headers, timeout=60)
    if answer.status_code != 200 or "label" not in answer.text:
        raise ValueError(f"the server answered {answer.status_code}: {answer.text[:200]}")


def figures(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], process: dict[str, Any], memory: dict[str, Any]
) -> dict[str, float | None]:
    """The figures that LIMITS bounds; None for one that could not be had."""
    of = {(row["server"] == empty.NAME, row["connections"]): row for row in [*ours, *theirs]}
    most = of.get((False, 256))
    ceiling = of.get((True, 256))
    one, none = of.get((False, 1)), of.get((True, 1))
    timed = one and none and one["p50"] is not None and none["p50"] is not None
    found: dict[str, float | None] = {
        "requests_per_second_256": most and most["requests_per_second"],
        "share_of_empty_256": most and ceiling and _share(most, ceiling),
        "one_connection_above_empty_ms": one["p50"] - none["p50"] if timed else None,
        "predict_1_ms": process["rows"]["1"]["total_ms"],
        "predict_32_ms": process["rows"]["32"]["total_ms"],
    }
    own = memory["workers"] - memory["count"] * memory["context"]
    found["memory_over_weights"] = own / memory["weights"] if memory["weights"] and memory["workers"] else None
    return found


def _share(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    return ours["requests_per_second"] / max(1.0, theirs["requests_per_second"])


def verdicts(found: dict[str, float | None]) -> list[str]:
    """A line for each figure beside what is wanted."""
    lines = []
    for name, (limit, sense) in LIMITS.items():
        value = found.get(name)
        if value is None:
            lines.append(f"{name}: not measured (wanted {sense} {limit:g})")
            continue
        kept = value >= limit if sense == "at least" else value <= limit
        lines.append(f"{name}: {value:.3f} (wanted {sense} {limit:g}): {'kept' if kept else 'MISSED'}")
    return lines


def settings_of(archive: Path) -> dict[str, Any]:
    """The archive's own settings of its server."""
    with zipfile.ZipFile(archive) as packed:
        return yaml.safe_load(packed.read("model-config.yaml"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", default="base", help="a size with random weights, or a checkpoint's folder")
    parser.add_argument("--tokenizer", type=Path, help="a BERT tokenizer's folder (default: the sample encoder's)")
    parser.add_argument("--store", type=Path, help="keep the archive here and take the one that is here already")
    parser.add_argument("--workers", type=int, nargs="*", default=[0], help="0: the builder's choice; others beside")
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--warm-up", type=float, default=8, help="seconds of the widest load before anything counts")
    parser.add_argument("--wrk-threads", type=int, default=4)
    parser.add_argument("--first-port", type=int, default=28180, help="five ports from here on are used")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs (default: none)")
    return parser.parse_args()


def main() -> int:
    """Print a line for each figure, write all of them; returns 1 where one that is wanted on a GPU is missed."""
    options = _options()
    load.wrk()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = options.tokenizer or served_child.tokenizer_folder(folder / "tokenizer")
        store = options.store or folder / "store"
        archive = store / "targets.mar"
        if not archive.exists():
            print(json.dumps(child("build", options.device, options.model, tokenizer, archive)), flush=True)
        bodies = [json.dumps({"text": text}) for text in asked(tokenizer / "tokenizer.json")]
        plan = folder / "bodies.json"
        plan.write_text(json.dumps(bodies), encoding="utf-8")
        context = child("context", options.device)["bytes"]
        process = child("predict", options.device, archive, plan)
        print(json.dumps(process), flush=True)
        rows: list[dict[str, Any]] = []
        found: dict[str, float | None] = {}
        for turn, workers in enumerate(options.workers):
            served_child.set_workers(archive, workers)
            logs = options.logs or folder
            own, count, taken = serve(archive, bodies, options, logs / f"ours-{turn}")
            ceiling = empty.build(archive, folder / "empty")
            other, _, _ = serve(ceiling, bodies, options, logs / f"empty-{turn}")
            memory = {"count": count, "workers": taken, "context": context, "weights": process["weights_bytes"]}
            found = found or figures(own, other, process, memory)
            rows += [{**row, "workers": count} for row in [*own, *other]]
            print(json.dumps({"workers": count, **memory}), flush=True)
        lines = verdicts(found)
        result = {
            **machine.facts(options.device, machine.threads_available()),
            "settings": {
                "model": options.model, "connections": list(options.connections), "seconds": options.seconds,
                "tokens": list(TOKENS), "server": settings_of(archive), "wait": process["wait"],
            },
            "figures": found, "verdicts": lines, "process": process, "memory": memory, "rows": rows,
        }  # fmt: skip
        print(results.save("targets", result, options.output))
    print("\n".join(lines))
    return int(any(line.endswith("MISSED") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
