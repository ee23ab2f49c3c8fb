"""One archive behind TorchServe, uvicorn and Ray Serve: the same answers, their rates and processor time a request.

The servers run one after the other, in as many rounds as asked for, with the workers and threads that `builder tune`
wrote into the archive. Before its rate counts, each one's answers to some texts are compared with the first one's. wrk
makes the load, so that the generator takes little of the cores that it measures.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks import machine, results
from builder.compile import ROOT
from deploy.server import Server
from handler.servers.http import shares

SERVERS = ("torchserve", "http", "ray")
TEXTS = ROOT / "samples" / "data" / "tickets.tsv"
COMPARED = 64
"""Texts whose answers are compared, one at a time: what shares a pass moves the last digits."""
START = 400.0
_SCRIPT = """
local bodies, at = {}, 0
for line in io.lines(os.getenv("EFFT_BODIES")) do bodies[#bodies + 1] = line end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
if os.getenv("EFFT_TOKEN") then wrk.headers["Authorization"] = "Bearer " .. os.getenv("EFFT_TOKEN") end
request = function()
  at = at % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[at])
end
done = function(summary, latency, _)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %f, "failed": %d, "p50": %f, "p95": %f}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3))
end
"""


@dataclass
class Target:
    """A running server: where requests go, with which headers, and the processes that it is made of."""

    url: str
    headers: dict[str, str]
    process: psutil.Process

    def seconds(self) -> float:
        """Processor time that its processes have used."""
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("archive", type=Path, metavar="NAME.mar", help="a classifier or an embedding model")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=int, default=10, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")


def run(options: argparse.Namespace) -> None:
    """Measure, compare and write the result. Raises ValueError where answers differ or requests fail."""
    if shutil.which("wrk") is None:
        raise ValueError("wrk is not installed; apt-get install wrk")
    rows: list[dict[str, Any]] = []
    expected: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="efft-", dir="/tmp") as temporary:
        folder = Path(temporary)
        bodies = _bodies(folder)
        for number in range(options.rounds):
            for name in options.servers:
                with serving(name, options, folder / f"{name}-{number}") as target:
                    _compare(name, target, bodies, expected)
                    for connections in options.connections:
                        row = {"server": name, "round": number, **_load(target, folder, connections, options.seconds)}
                        rows.append(row)
                        print(row, flush=True)
    workers, server_settings = shares(options.archive, None, None)
    settings = {"archive": options.archive.name, "workers": workers, "compared": COMPARED, **server_settings["handler"]}
    facts = machine.facts("cpu", machine.threads_available())
    print(results.save("servers", {**facts, "settings": settings, "rows": rows}, options.output))


def _bodies(folder: Path) -> list[str]:
    with TEXTS.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    bodies = [json.dumps({"text": text}) for text in texts]
    (folder / "bodies.jsonl").write_text("\n".join(bodies) + "\n", encoding="utf-8")
    (folder / "load.lua").write_text(_SCRIPT)
    return bodies


def _compare(name: str, target: Target, bodies: list[str], expected: list[Any]) -> None:
    headers = {**target.headers, "Content-Type": "application/json"}
    answers = []
    for body in bodies[:COMPARED]:
        reply = requests.post(target.url, data=body.encode(), headers=headers, timeout=60)
        reply.raise_for_status()
        answers.append(reply.json())
    expected[:] = expected or answers
    if answers != expected:
        raise ValueError(f"{name} answers otherwise than the first server")


def _load(target: Target, folder: Path, connections: int, seconds: int) -> dict[str, Any]:
    """One measurement, a tenth of it again before it to warm up."""
    environment = {**os.environ, "EFFT_BODIES": str(folder / "bodies.jsonl")}
    if "Authorization" in target.headers:
        environment["EFFT_TOKEN"] = target.headers["Authorization"].removeprefix("Bearer ")
    said: dict[str, Any] = {}
    used = 0.0
    for duration in (max(1, seconds // 10), seconds):
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{duration}s",
            "--timeout",
            "30s",
            "-s",
            str(folder / "load.lua"),
        ]
        before = target.seconds()
        with machine.Watch() as watch:
            result = subprocess.run([*command, target.url], env=environment, capture_output=True, text=True, check=True)
        used = target.seconds() - before
        said = json.loads(result.stdout.splitlines()[-1])
    if said["failed"]:
        raise ValueError(f"{said['failed']} of {said['requests']} requests failed")
    return {
        "connections": connections, "requests": said["requests"],
        "requests_per_second": round(said["requests"] / said["seconds"], 1),
        "p50_ms": round(said["p50"], 2), "p95_ms": round(said["p95"], 2),
        "cpu_ms_per_request": round(1e3 * used / said["requests"], 3),
        "others": round(max(0.0, watch.others - used / watch.elapsed), 2),
    }  # fmt: skip


@contextmanager
def serving(name: str, options: argparse.Namespace, folder: Path) -> Iterator[Target]:
    """One of SERVERS with the archive, ready to be asked."""
    if name == "torchserve":
        with _torchserve(options.archive, folder) as target:
            yield target
        return
    port = _free_port()
    workers, settings = shares(options.archive, None, None)
    module, more = "http", ["--device", "cpu"]
    if name == "ray":
        module = "ray_serve"
        more = ["--threads", str(settings["handler"]["threads"]), "--min-replicas", str(workers),
                "--max-replicas", str(workers)]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        f"handler.servers.{module}",
        f"model={options.archive}",
        "--port",
        str(port),
        *more,
    ]
    folder.mkdir()
    environment = {**os.environ, "RAY_TMPDIR": str(folder)}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}/v2/health/ready", process)
            time.sleep(2)  # the other processes
            yield Target(f"http://127.0.0.1:{port}/predictions/model", {}, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START)


@contextmanager
def _torchserve(archive: Path, folder: Path) -> Iterator[Target]:
    ports = tuple(_free_port() for _ in range(5))
    with Server(folder, archive.parent, ports=ports[:3], grpc_ports=ports[3:]) as server:
        server.start([archive.stem])
        process = server.process()
        assert process is not None
        yield Target(f"{server.url}/predictions/{archive.stem}", server.headers(), process)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise ValueError("the server did not start")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
