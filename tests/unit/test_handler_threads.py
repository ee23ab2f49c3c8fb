"""A worker's threads and cores: what is asked for, what there is, and who has it already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from handler import threads
from handler.config import ConfigError, SetupConfig
from handler.predictor import Predictor
from handler.runtime import set_threads
from handler.threads import Placement, ThreadSettings, available_cores, core_order, place, read_server_settings
from tests.unit.handler_fakes import PooledLogits, save_archive

CONFIG = SetupConfig(model_name="fake")
CORES = sorted(os.sched_getaffinity(0))
UNLIMITED = pytest.mark.skipif(available_cores() < len(CORES), reason="a CPU quota allows fewer cores")
# Places itself as a worker does, says where it ended up, and lives until its input closes.
WORKER = """
import json, os, sys, threading
import numpy
from handler import threads
threads._NAMESPACE, asked = sys.argv[1], json.loads(sys.argv[2])
if len(sys.argv) > 3:
    os.sched_setaffinity(0, json.loads(sys.argv[3]))
placement = threads.place(threads.ThreadSettings.model_validate(asked))
later = []
thread = threading.Thread(target=lambda: later.extend(os.sched_getaffinity(0)))
thread.start(); thread.join()
every = []
for task in os.listdir("/proc/self/task"):
    try:
        every.append(sorted(os.sched_getaffinity(int(task))))
    except ProcessLookupError:
        pass  # a thread that has been joined may stand there a moment longer
print(json.dumps([placement.threads, placement.cores, placement.note, sorted(later), every]), flush=True)
sys.stdin.read()
"""


class Worker:
    """A process that has placed itself."""

    def __init__(self, namespace: str, allowed: list[int] | None = None, **asked: Any) -> None:
        arguments = [namespace, json.dumps(asked), *([json.dumps(allowed)] if allowed else [])]
        command = [sys.executable, "-c", WORKER, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.threads, self.cores, self.note, self.later, self.every = json.loads(line)

    def end(self, *, kill: bool = False) -> str:
        if kill:
            self.process.kill()
        return self.process.communicate()[1]


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_server_settings_win_over_the_setup_config() -> None:
    config = SetupConfig(model_name="fake", threads=3, workers=2)
    assert ThreadSettings.of(None, config) == ThreadSettings(threads=3, workers=2, pin=False)
    yaml = {"maxWorkers": 4, "handler": {"threads": 5, "pin": True, "other": 1}, "batchSize": 8}
    assert ThreadSettings.of(yaml, config) == ThreadSettings(threads=5, workers=4, pin=True)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"threads": -1}, "model-config.yaml: handler.threads: "),
        ({"pin": "perhaps"}, "model-config.yaml: handler.pin: "),
        (["pin"], "model-config.yaml: handler must be a mapping"),
    ],
)
def test_wrong_settings_are_named(block: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ThreadSettings.of({"handler": block}, CONFIG)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_threads_are_divided_among_workers(threads_kept: None) -> None:
    assert place(ThreadSettings(workers=1000)) == Placement(1)
    assert place(ThreadSettings(threads=3)) == Placement(3)
    assert place(ThreadSettings()) == Placement(available_cores())
    set_threads(Placement(3))
    assert torch.get_num_threads() == 3


def test_server_settings_are_read_from_the_archive(tmp_path: Path) -> None:
    assert read_server_settings(tmp_path) == {}
    (tmp_path / "model-config.yaml").write_text("handler: {threads: 2}\n")
    assert read_server_settings(tmp_path) == {"handler": {"threads": 2}}
    (tmp_path / "model-config.yaml").write_text("handler: {threads\n")
    with pytest.raises(ConfigError, match=r"^model-config.yaml: [^\n]+$"):
        read_server_settings(tmp_path)


def test_server_settings_are_read_from_a_packed_archive(tmp_path: Path) -> None:
    packed = tmp_path / "fake.mar"
    for content, expected in ({}, {}), ({"model-config.yaml": "maxWorkers: 3\n"}, {"maxWorkers": 3}):
        with zipfile.ZipFile(packed, "w") as written:
            for name, text in content.items():
                written.writestr(name, text)
        assert read_server_settings(packed) == expected
    packed.write_bytes(b"no zip")
    with pytest.raises(zipfile.BadZipFile):
        read_server_settings(packed)


def test_a_predictor_takes_its_threads_from_the_server_settings(tmp_path: Path, threads_kept: None) -> None:
    save_archive(tmp_path, PooledLogits(2), "sequence_classification", {})
    predictor = Predictor.load(tmp_path, None, {"handler": {"threads": 3}})
    assert predictor.placement == Placement(3)
    assert torch.get_num_threads() == predictor.describe()["threads"] == 3


@UNLIMITED
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_workers_get_cores_of_their_own_and_a_restarted_one_its_predecessors(namespace: str) -> None:
    first = Worker(namespace, threads=1, workers=2, pin=True)
    second = Worker(namespace, threads=1, workers=2, pin=True)
    try:
        assert first.note is second.note is None
        assert set(first.cores).isdisjoint(second.cores)
        for worker in (first, second):
            # Threads that were there before, and those that come later.
            assert {tuple(cores) for cores in [*worker.every, worker.later]} == {tuple(worker.cores)}
        first.end(kill=True)
        restarted = Worker(namespace, threads=1, workers=2, pin=True)
        if len(CORES) == 2:
            assert restarted.cores == first.cores
        assert set(restarted.cores).isdisjoint(second.cores)
        restarted.end()
    finally:
        second.end()


@UNLIMITED
def test_without_free_cores_a_worker_runs_unpinned_and_says_so_in_a_line(namespace: str) -> None:
    first = Worker(namespace, threads=len(CORES), pin=True)
    second = Worker(namespace, threads=len(CORES), pin=True)
    assert first.cores == CORES
    assert (second.threads, second.cores, second.later) == (len(CORES), None, CORES)
    (line,) = second.end().splitlines()
    assert "not pinned (no" in line
    assert first.end() == ""


def test_on_fewer_cores_than_asked_for_the_workers_divide_them(namespace: str) -> None:
    worker = Worker(namespace, allowed=CORES[:1], threads=64, workers=2, pin=True)
    assert (worker.threads, worker.cores) == (1, CORES[:1])
    (line,) = worker.end().splitlines()
    assert f"1 thread, pinned to {CORES[0]} (2 x 64 threads asked for, 1 available)" in line


def test_of_too_few_free_cores_none_is_held(monkeypatch: pytest.MonkeyPatch, namespace: str) -> None:
    monkeypatch.setattr(threads, "_NAMESPACE", namespace)
    monkeypatch.setattr(threads, "_claims", [])
    assert threads.claim([900, 901], 3) is None
    assert threads.claim([900, 901], 2) == (900, 901)
    assert threads.claim([900, 901, 902], 1) == (902,)
    for held in threads._claims:
        held.close()


def test_workers_that_choose_at_once_do_not_starve_each_other(monkeypatch: pytest.MonkeyPatch, namespace: str) -> None:
    monkeypatch.setattr(threads, "_NAMESPACE", namespace)
    monkeypatch.setattr(threads, "_claims", [])
    got: list[tuple[int, ...] | None] = []
    choosers = [threading.Thread(target=lambda: got.append(threads.claim(range(900, 916), 4))) for _ in range(6)]
    for chooser in choosers:
        chooser.start()
    for chooser in choosers:
        chooser.join()
    slices = [cores for cores in got if cores is not None]
    assert len(slices) == 4
    assert sorted(core for cores in slices for core in cores) == list(range(900, 916))
    for held in threads._claims:
        held.close()


def test_second_hardware_threads_are_handed_out_last(tmp_path: Path) -> None:
    for core, (siblings, package) in enumerate([("0,4", 0), ("1,5", 1), ("2,6", 0), ("3,7", 1)] * 2):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
        (folder / "physical_package_id").write_text(f"{package}\n")
    assert core_order(range(8), tmp_path) == [0, 2, 1, 3, 4, 6, 5, 7]
    assert core_order([9, 8], tmp_path) == [8, 9]
