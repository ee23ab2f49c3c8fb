"""The application under uvicorn and on Ray Serve, beside TorchServe with the same archives."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from builder.compile import ROOT
from deploy.server import Server
from tests.e2e.conftest import free_ports
from tests.e2e.test_serving import CONTEXT, INPUTS, TICKET
from tests.unit.handler_fakes import PooledLogits, save_archive
from tests.unit.test_handler_engine import pack

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
openai = pytest.importorskip("openai", reason="openai is not installed")

START = 240.0
STOP = 180.0
QUESTION = {"question": "Who founded the museum?", "context": CONTEXT}


class Running:
    """A server's process and its address."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        kind = {"json": body} if isinstance(body, (dict, list)) else {"data": body}
        return requests.post(self.url + path, timeout=60, **kind, **options)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=60)

    def openai(self, **options: Any) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options)


@contextmanager
def serving(module: str, *arguments: str, **environment: str) -> Iterator[Running]:
    """``python -m handler.servers.MODULE``, ready; ended by SIGTERM."""
    (port,) = free_ports(1)
    own = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **environment}
    command = [sys.executable, "-m", f"handler.servers.{module}", *arguments, "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    running = Running(process, port)
    try:
        end = time.monotonic() + START
        while not _ready(running):
            assert process.poll() is None, "".join(said)[-3000:]
            assert time.monotonic() < end, "".join(said)[-3000:]
            time.sleep(0.1)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP)
        finally:
            process.kill()
    assert "Traceback" not in "".join(said), "".join(said)[-3000:]


def _ready(running: Running) -> bool:
    try:
        return running.get("/v2/health/ready").status_code == 200
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives of the tasks that the samples leave out."""
    folder = tmp_path_factory.mktemp("small")
    made = {}
    for name, task, outputs in (("vectors", "embedding", 8), ("ranks", "rerank", 1)):
        files = save_archive(folder / name, PooledLogits(outputs), task, {"stride": 4}, normalize=True)
        made[name] = pack(files, folder / f"{name}.mar")
    return made


@pytest.fixture(scope="module")
def application(store: Path, small: dict[str, Path]) -> Iterator[Running]:
    archives = (f"{store}/ticket_routing.mar", f"{store}/document_qa.mar", *map(str, small.values()))
    with serving("http", *archives, "--device", "cpu") as running:
        yield running


BODIES: list[tuple[str, Any, str]] = [
    ("ticket_routing", TICKET.encode(), "text/plain"),
    ("ticket_routing", {"text": TICKET, "top_k": 3}, ""),
    ("ticket_routing", [TICKET, "", {"text": "Where is my parcel?"}, 7], ""),
    ("ticket_routing", {"inputs": [TICKET, "A new password, please."], "parameters": {"top_k": 2}}, ""),
    ("ticket_routing", {"instances": [TICKET]}, ""),
    ("ticket_routing", {"text": "parcel " * 600}, ""),
    ("ticket_routing", {"text": "parcel " * 600, "truncation": "error"}, ""),
    ("ticket_routing", {"text": TICKET, "nonsense": 1}, ""),
    ("ticket_routing", b"{", "application/json"),
    ("ticket_routing", b"\xff\xfe\xff", "text/plain"),
    ("ticket_routing", [TICKET] * 129, ""),
    ("document_qa", QUESTION, ""),
    ("document_qa", {**QUESTION, "n_best": 3}, ""),
    ("document_qa", {"question": "Who founded the museum?", "context": CONTEXT * 40}, ""),
    ("document_qa", {"question": "Who?"}, ""),
]


@pytest.mark.parametrize(("name", "body", "kind"), BODIES, ids=range(len(BODIES)))
def test_the_same_archive_gives_the_same_answer(
    server: Server, application: Running, name: str, body: Any, kind: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    path = f"/predictions/{name}"
    content = {"json": body} if isinstance(body, (dict, list)) else {"data": body}
    theirs = requests.post(server.url + path, headers={**server.headers(), **headers}, timeout=60, **content)
    own = application.post(path, body, headers=headers)
    assert own.status_code == theirs.status_code
    assert own.json() == theirs.json()


def test_kserve_gives_the_same_answers(server: Server, application: Running) -> None:
    tensors = [{"name": n, "shape": [1], "datatype": "BYTES", "data": [text]} for n, text in QUESTION.items()]
    path, body = "/v2/models/document_qa/infer", {"id": "7", "inputs": tensors}
    theirs = requests.post(server.url + path, json=body, headers=server.headers(), timeout=60).json()
    own = application.post(path, body).json()
    assert own["outputs"] == theirs["outputs"]
    path, body = "/v1/models/ticket_routing:predict", {"instances": [TICKET, {"text": ""}]}
    theirs = requests.post(server.url + path, json=body, headers=server.headers(), timeout=60).json()
    assert application.post(path, body).json() == theirs


@pytest.mark.parametrize("file", sorted(INPUTS.glob("*/*")), ids=lambda file: file.name)
def test_the_sample_requests(server: Server, application: Running, file: Path) -> None:
    kind = {"Content-Type": "application/json" if file.suffix == ".json" else "text/plain"}
    path = f"/predictions/{file.parent.name}"
    theirs = requests.post(server.url + path, data=file.read_bytes(), headers={**server.headers(), **kind}, timeout=60)
    own = application.post(path, file.read_bytes(), headers=kind)
    assert (own.status_code, own.json()) == (theirs.status_code, theirs.json())


def check_openai(running: Running) -> None:
    """What the official client does with a server of ours."""
    own = running.post("/predictions/vectors", {"text": "the cat sat"}).json()["embedding"]
    client = running.openai()
    one = client.embeddings.create(model="vectors", input="the cat sat")
    assert one.data[0].embedding == pytest.approx(own, rel=1e-6)
    assert (one.model, one.usage.prompt_tokens, one.usage.total_tokens) == ("vectors", 5, 5)
    floats = client.embeddings.create(model="vectors", input=["the cat sat", "red"], encoding_format="float")
    assert [item.index for item in floats.data] == [0, 1]
    assert floats.data[0].embedding == pytest.approx(own, rel=1e-6)
    cut = client.embeddings.create(model="vectors", input="red", dimensions=3, extra_body={"normalize": True})
    assert len(cut.data[0].embedding) == 3
    many = client.embeddings.create(model="vectors", input=["one", "two", "red"] * 40)
    assert len(many.data) == 120
    names = {model.id for model in client.models.list()}
    assert {"vectors", "ranks"} <= names
    assert client.models.retrieve("vectors").object == "model"
    with pytest.raises(openai.NotFoundError, match="there is no model of this name"):
        client.embeddings.create(model="text-embedding-3-small", input="red")
    with pytest.raises(openai.BadRequestError, match="text is empty") as refused:
        client.embeddings.create(model="vectors", input=["red", " "])
    assert (refused.value.code, refused.value.param) == ("empty", "input")


def test_the_openai_client(application: Running) -> None:
    check_openai(application)


def test_the_asynchronous_openai_client(application: Running) -> None:
    async def many() -> list[Any]:
        client = openai.AsyncOpenAI(base_url=f"{application.url}/v1", api_key="none", max_retries=0)
        calls = (client.embeddings.create(model="vectors", input=f"one {'red ' * (i % 20)}") for i in range(64))
        answers = await asyncio.gather(*calls)
        await client.close()
        return list(answers)

    assert [answer.usage.total_tokens for answer in asyncio.run(many())] == [3 + i % 20 for i in range(64)]


def test_rerank_by_requests(application: Running) -> None:
    body = {"model": "ranks", "query": "the cat", "documents": ["red", "the mat", "blue green"], "top_n": 2}
    answer = application.post("/v2/rerank", body).json()
    own = application.post("/predictions/ranks", {"query": "the cat", "texts": body["documents"]}).json()["results"]
    assert [(r["index"], r["relevance_score"]) for r in answer["results"]] == [
        (r["index"], r["score"]) for r in own[:2]
    ]


def test_running_requests_are_answered_at_the_end(store: Path) -> None:
    outcomes: list[Any] = []
    with serving("http", f"tickets={store}/ticket_routing.mar", "--device", "cpu") as running:

        def ask() -> None:
            try:
                outcomes.append(running.post("/predictions/tickets", [TICKET * 8] * 64).status_code)
            except requests.ConnectionError:  # one that had not come in yet
                outcomes.append(None)

        def under_way() -> float:
            lines = running.get("/metrics").text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith("efft_calls"))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        while (accepted := under_way()) < 4:
            assert len(outcomes) < 8, "the requests were too quick to be stopped"
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert running.process.wait(STOP) == 0
    assert set(outcomes) <= {200, 503, None}
    assert outcomes.count(200) >= accepted


def test_a_process_that_dies_is_replaced(small: dict[str, Path]) -> None:
    with serving("http", str(small["vectors"]), "--workers", "2", "--device", "cpu") as running:
        pids: set[str] = set()
        end = time.monotonic() + START
        while len(pids) < 2 and time.monotonic() < end:
            running.post("/predictions/vectors", {"text": "red"})
            lines = running.get("/metrics").text.splitlines()
            pids |= {line.split('worker="')[1].split('"')[0] for line in lines if "efft_replies_total{" in line}
        os.kill(int(pids.pop()), signal.SIGKILL)
        time.sleep(0.2)
        answers = []
        for _ in range(20):
            try:
                answers.append(running.post("/predictions/vectors", {"text": "red"}).status_code)
            except requests.ConnectionError:  # the socket's queue of the one that died
                answers.append(0)
            time.sleep(0.1)
        assert answers[-10:] == [200] * 10


def test_ray_serve(store: Path, small: dict[str, Path], application: Running) -> None:
    """Several archives behind an entrance; the same answers as under uvicorn."""
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
    archives = (f"{store}/ticket_routing.mar", *map(str, small.values()))
    # Ray's sockets lie below this folder, and the names of sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="efft-", dir="/tmp") as folder,
        serving("ray_serve", *archives, "--max-replicas", "1", RAY_TMPDIR=folder) as running,
    ):
        for name, body, kind in BODIES:
            if name == "ticket_routing":
                headers = {"Content-Type": kind} if kind else {}
                theirs = application.post(f"/predictions/{name}", body, headers=headers)
                own = running.post(f"/predictions/{name}", body, headers=headers)
                assert (own.status_code, own.json()) == (theirs.status_code, theirs.json())
        check_openai(running)
        assert running.post("/rerank", {"query": "a", "documents": ["red"]}).json()["model"] == "ranks"
        assert running.get("/models/vectors").json()["canary"]["healthy"] is True
        assert json.loads(running.get("/v2/models/none").text)["error"]
