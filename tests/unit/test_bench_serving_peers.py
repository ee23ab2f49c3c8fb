from __future__ import annotations

import importlib
import json
import socket
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import transformers
import yaml

from benchmarks.serving import plain
from benchmarks.serving.load import Refused
from benchmarks.serving.peers import Command
from benchmarks.serving.servers import TorchServe
from handler.threads import available_cores

CHILD = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(60)"
SERVER = f"""
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


class Script(Command):
    path = "/"

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(Command, "port", free.getsockname()[1])
    return Script([sys.executable, "-c", SERVER, str(Command.port)], 1, tmp_path / "log")


def test_a_servers_processor_time_is_that_of_its_children_too_and_none_outlives_it(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Script, "stopped", 0.5)
    with script:
        family = script.process.children(recursive=True)
        deadline = time.monotonic() + 30
        while script.processor_seconds()["server"] < 0.3 + sum(script.process.cpu_times()[:2]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert family
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert script.processor_seconds() == {}


def test_a_server_that_ends_at_once_is_refused_with_its_last_line(script: Script) -> None:
    script.command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(Refused, match="did not start: no such model"), script:
        pass


def test_a_port_that_another_server_listens_on_is_not_taken_for_ones_own(script: Script) -> None:
    with socket.create_server(("127.0.0.1", script.port)), pytest.raises(Refused, match="is taken"), script:
        pass


def test_an_archive_that_torchserve_cannot_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no gone.mar"), TorchServe(tmp_path / "gone.mar", tmp_path / "server"):
        pass


@pytest.fixture
def archive(checkpoint: Path, tmp_path: Path) -> Path:
    return plain.build(checkpoint, "fp32", 12, tmp_path)


def test_the_plain_archive_holds_the_checkpoint_a_handler_and_nothing_of_this_product(archive: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        names = set(packed.namelist())
        settings = yaml.safe_load(packed.read("model-config.yaml"))
        manifest = json.loads(packed.read("MAR-INF/MANIFEST.json"))["model"]
    own = {"MAR-INF/MANIFEST.json", "model-config.yaml", "plain_handler.py"}
    assert own | {"config.json", "model.safetensors", "tokenizer.json"} == names
    assert manifest["handler"] == "plain_handler.py"
    assert (settings["maxWorkers"], settings["batchSize"], settings["maxBatchDelay"]) == (available_cores(), 2, 1)
    assert settings["handler"] == {"threads": 1, "max_length": 12, "data_type": "float32"}


def test_the_plain_handler_pads_to_the_maximum_and_answers_as_transformers_does(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "extracted"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which the module sets for the whole process
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("plain_handler")
    handler = module.PlainClassifier()
    settings = yaml.safe_load((folder / "model-config.yaml").read_text())
    handler.initialize(SimpleNamespace(model_yaml_config=settings, system_properties={"model_dir": str(folder)}))
    texts = ["the cat", "who is it on a red mat", "a b c d e f g h i j k l m n o p"]
    inputs = handler.preprocess([{"body": {"text": text}} for text in texts])
    assert inputs["input_ids"].shape == (3, 12)
    answers = handler.postprocess(handler.inference(inputs))
    pipeline = transformers.pipeline("text-classification", model=str(folder))
    expected = [pipeline([text], truncation=True, max_length=12)[0] for text in texts]
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)
    for wrong in ({}, {"text": 1}, b"text"):
        with pytest.raises(module.PredictionException) as refusal:
            handler.preprocess([{"body": {"text": "good"}}, {"body": wrong}])
        assert refusal.value.error_code == 400
