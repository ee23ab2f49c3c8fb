"""A tuned archive on a server of its own: its workers keep to cores of their own, also after one has died."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import requests
import yaml

from builder.mar import replace_files
from builder.tune.workers import Setting, server_settings
from deploy.server import Server
from handler.threads import available_cores
from tests.e2e.conftest import free_ports, run

NAME = "roberta_like"


def _cores(server: Server) -> dict[int, set[int]]:
    """What every thread of each worker may run on, by process id."""
    found = {}
    for pid in server.worker_pids():
        try:
            threads = [os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")]
        except (FileNotFoundError, ProcessLookupError):  # the worker or a thread of it has just ended
            continue
        found[pid] = set().union(*threads)
    return found


def _settled(server: Server, gone: int | None = None, timeout: float = 60) -> dict[int, set[int]]:
    """The workers' cores once there are two workers with a core of their own each, none of them ``gone``."""
    deadline = time.monotonic() + timeout
    cores: dict[int, set[int]] = {}
    while time.monotonic() < deadline:
        cores = _cores(server)
        if len(cores) == 2 and gone not in cores and all(len(own) == 1 for own in cores.values()):
            return cores
        time.sleep(0.5)
    said = [
        line for log in server.folder.glob("logs/*.log") for line in log.read_text().splitlines() if "pinned" in line
    ]
    if any("free of other pinned workers" in line for line in said):
        pytest.skip("other processes of this machine hold its cores, so that workers cannot be pinned")
    raise AssertionError(f"no two workers with a core of their own each within {timeout} s: {cores}; {said}")


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_a_tuned_archives_workers_keep_to_cores_of_their_own(store: Path, tmp_path: Path) -> None:
    archive = Path(shutil.copy(store / f"{NAME}.mar", tmp_path))
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:2])  # on more cores there would be more divisions to measure
    try:
        out = run("builder", "tune", str(archive), "--mix", "short", "--seconds", "0.3")
    finally:
        os.sched_setaffinity(0, allowed)
    assert "best for throughput" in out
    # Which division wins is the machine's affair; that of two workers is served here.
    two = {**server_settings(Setting(2, 1, 8, 1), pin=True), "responseTimeout": 120, "startupTimeout": 300}
    replace_files(archive, {"model-config.yaml": yaml.safe_dump(two).encode()})
    ports = free_ports(5)
    folder = tmp_path / "server"
    with Server(folder, tmp_path, ports=tuple(ports[:3]), grpc_ports=tuple(ports[3:])) as server:
        server.start([NAME])
        cores = _settled(server)
        first, second = cores
        assert cores[first].isdisjoint(cores[second])
        os.kill(first, 9)
        again = _settled(server, first)
        assert again[second] == cores[second]
        (new,) = set(again) - {second}
        assert again[new].isdisjoint(again[second])
        url = f"{server.url}/predictions/{NAME}"
        answer = requests.post(url, json={"text": "where is the parcel"}, headers=server.headers(), timeout=60)
        assert answer.status_code == 200
