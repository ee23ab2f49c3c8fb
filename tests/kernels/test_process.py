"""The CPU engine within a process: forks, and what memory threads keep."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

_FORKS = """
import os, sys, threading
import torch
from tests.kernels import reference
from tests.kernels.batches import ragged
from tests.kernels.reference import Shape
from tests.kernels.test_encoder import prepared, run, tensors

torch.ops.load_library(sys.argv[1])
efft = torch.ops.efft
torch.set_num_threads(3)
shape = Shape(layers=3)
generator = torch.Generator().manual_seed(0)
plain = reference.random_weights(shape, generator)
batch = ragged([40, 3, 61], generator)
weights = prepared(efft, plain, shape)
expected = run(efft, batch, weights, shape)

def answers_alike(*_):
    again = prepared(efft, plain, shape)  # uses the team as well
    return all(torch.equal(run(efft, batch, weights, shape), expected) for weights in (weights, again))

def in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(answers_alike()))
    thread.start()
    thread.join()
    return found == [True]

def child():
    return answers_alike() and in_a_thread() and answers_alike()

pid = os.fork()
if pid == 0:
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if child() else 7)
    _, status = os.waitpid(grandchild, 0)
    os._exit(0 if child() and status == 0 else 7)
_, status = os.waitpid(pid, 0)
sys.exit(0 if status == 0 and child() else 1)
"""


def test_a_process_that_has_used_the_engine_may_fork() -> None:
    from builder.compile import compile_cpu

    library = os.environ.get("EFFT_CPU_LIBRARY") or str(compile_cpu())
    done = subprocess.run([sys.executable, "-c", _FORKS, library], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def device(_cpu_library: None) -> str:
    return "cpu"


def _call(efft_test: SimpleNamespace, tokens: int) -> None:
    qkv = torch.zeros(tokens, 3 * 64)
    efft_test.attention(qkv, torch.zeros(3 * 64), torch.tensor([0, tokens], dtype=torch.int32), 1, tokens)


def test_one_long_text_does_not_hold_its_memory_for_ever(efft_test: SimpleNamespace) -> None:
    efft_test.workspaces(0.0)
    _call(efft_test, 2000)
    high = efft_test.workspaces(1e9)
    for _ in range(10):
        _call(efft_test, 50)
    assert efft_test.workspaces(1e9) == high > 2_000_000, "it shrank at once: the next long text pays for new pages"
    for _ in range(130):
        _call(efft_test, 50)
    assert efft_test.workspaces(1e9) < high / 10


def test_idle_and_finished_threads_hold_nothing(efft_test: SimpleNamespace) -> None:
    efft_test.workspaces(0.0)
    called, leave = threading.Event(), threading.Event()

    def work() -> None:
        _call(efft_test, 2000)
        called.set()
        leave.wait()

    thread = threading.Thread(target=work)
    thread.start()
    called.wait()
    assert efft_test.workspaces(1e9) > 2_000_000
    assert efft_test.workspaces(0.0) == 0
    _call(efft_test, 10)
    leave.set()
    thread.join()
    held = efft_test.workspaces(1e9)
    other = threading.Thread(target=_call, args=(efft_test, 2000))
    other.start()
    other.join()
    deadline = time.monotonic() + 60  # Python joins a thread before the system has ended it
    while efft_test.workspaces(1e9) > held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert efft_test.workspaces(1e9) <= held
