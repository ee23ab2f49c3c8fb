"""``efft serve``: a server in the foreground, which SIGTERM ends as an operator would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from builder.compile import ROOT
from deploy.server import Server
from tests.e2e.conftest import free_ports

NAME = "distilbert_like"
READY = 120


@pytest.fixture
def served(store: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """The running command, its port and its folder; the archive comes by a link from another folder."""
    port, management, metrics, grpc = free_ports(4)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / f"{NAME}.mar").symlink_to(store / f"{NAME}.mar")
    log = (tmp_path / "log").open("w+")
    command = [
        sys.executable, "-m", "deploy.efft", "serve", str(tmp_path / "archives"), "--folder", str(tmp_path / "run"),
        "--port", str(port), "--management-port", str(management), "--metrics-port", str(metrics),
        "--grpc-port", str(grpc), "--drain", "20",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log)
    try:
        end = time.monotonic() + READY
        while "the inference token" not in (tmp_path / "log").read_text():
            assert process.poll() is None, "it ended while it started"
            assert time.monotonic() < end, "it did not get ready"
            time.sleep(0.2)
        yield process, port, tmp_path
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_it_answers_is_healthy_and_ends_in_order(served: tuple[subprocess.Popen[str], int, Path]) -> None:
    process, port, folder = served
    asked = [sys.executable, "-m", "deploy.efft", "health", "--port", str(port), "--folder", str(folder / "run")]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "Healthy\n")
    url = f"http://127.0.0.1:{port}/predictions/{NAME}"
    assert requests.post(url, data="the parcel", timeout=60).status_code == 400, "without a token"
    headers = Server(folder / "run", folder).headers()
    answer = requests.post(url, data="the parcel has not arrived", headers=headers, timeout=60)
    assert answer.json()["label"].startswith("LABEL_")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert (folder / "log").read_text().endswith("SIGTERM: stopping when running requests are answered\nstopped\n")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/ping", timeout=5)
