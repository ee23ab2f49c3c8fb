"""One real TorchServe for all end-to-end tests: both samples, a RoBERTa-style and a DistilBERT-style checkpoint."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.proxy import Proxy, nginx
from deploy.server import Server
from handler.client import Client
from tests import fresh
from tests.checkpoints import make_checkpoint

SAMPLES = ("ticket_routing", "document_qa")
OTHERS = {"roberta_like": "roberta", "distilbert_like": "distilbert"}
FORMATS = {"roberta_like": "torchscript", "distilbert_like": "export"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def run(*arguments: str) -> str:
    """Run a module of the checkout in a process of its own; its standard output."""
    result = fresh.run(*arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@contextmanager
def registered(server: Server, configs: dict[str, dict[str, Any]], folder: Path) -> Iterator[Client]:
    """A client of the running server with archives of these setup configs, by name, registered in it meanwhile."""
    url = f"http://127.0.0.1:{server.ports[1]}/models"
    for name, config in configs.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"name": name, **config}))
        run("builder", "archive", str(path), "--output", str(server.store), "--device", "cpu")
        settings: dict[str, str | int] = {"url": f"{name}.mar", "initial_workers": 1, "synchronous": "true"}
        answer = requests.post(url, params=settings, headers=server.headers("management"), timeout=120)
        assert answer.ok, answer.text
    with Client(server.url, key_file=server.folder / "key_file.json", timeout=60) as client:
        yield client
    for name in configs:
        requests.delete(f"{url}/{name}", headers=server.headers("management"), timeout=60)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This process's model store with four archives, built by the command line once for all of a run's processes."""
    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "archives"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "made").exists():
            _make_archives(shared)
            (shared / "made").touch()
    folder = tmp_path_factory.mktemp("store")
    for archive in shared.glob("*.mar"):
        shutil.copyfile(archive, folder / archive.name)
    return folder


def _make_archives(folder: Path) -> None:
    run("samples", "build")
    for name in SAMPLES:
        run("builder", "archive", f"setup_configs/{name}.json", "--output", str(folder), "--device", "cpu")
    for name, family in OTHERS.items():
        checkpoint = make_checkpoint(folder / f"checkpoint-{name}" / name, family)
        options = ["--format", FORMATS[name], "--output", str(folder), "--device", "cpu"]
        run("builder", "archive", "--model", str(checkpoint), *options)


@pytest.fixture(scope="session")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running TorchServe with all four."""
    ports = free_ports(5)
    folder = tmp_path_factory.mktemp("server")
    # A test registers a model with a batch delay of its own; another speaks KServe's gRPC.
    settings = {"enable_model_api": "true", "ts_open_inference_protocol": "true"}
    with Server(folder, store, ports=tuple(ports[:3]), grpc_ports=tuple(ports[3:]), settings=settings) as running:
        running.start([*SAMPLES, *OTHERS])
        yield running


@pytest.fixture(scope="session")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """nginx in front of it, patient for two seconds with slow clients and without a rate that tests could reach."""
    if nginx() is None:
        pytest.skip("nginx is not installed")
    values = {"EFFT_CLIENT_SECONDS": "2", "EFFT_RATE": "100000", "EFFT_BURST": "10000", "EFFT_CONNECTIONS": "500"}
    with Proxy(tmp_path_factory.mktemp("proxy"), server, free_ports(1)[0], values) as running:
        yield running
