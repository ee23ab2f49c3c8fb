"""Every path of the engine, forced by the environment in a process of its own: what it computes, in any order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOPPER = ("small", "hopper", "library", "sm_80")


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.gpu.path_worker", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", HOPPER)
def test_a_forced_path_is_right_and_in_any_order_the_same(path: str) -> None:
    """Errors by the criterion; and no bit depends on whether kernels may start before their predecessor ends."""
    overlapping = _run("check", EFFT_CUDA_PATH=path)
    assert overlapping.returncode == 0, overlapping.stderr[-2000:]
    serial = _run("check", EFFT_CUDA_PATH=path, EFFT_CUDA_SERIAL="1")
    assert serial.stdout == overlapping.stdout
    assert len(overlapping.stdout.split()) > 3


def test_unforced_the_bits_are_those_of_serial_launches() -> None:
    overlapping, serial = _run("digests"), _run("digests", EFFT_CUDA_SERIAL="1")
    assert overlapping.returncode == serial.returncode == 0, overlapping.stderr[-2000:] + serial.stderr[-2000:]
    assert serial.stdout == overlapping.stdout


def test_the_paths_differ() -> None:
    """Else the variable would be without effect."""
    assert len({_run("digests", EFFT_CUDA_PATH=path).stdout for path in HOPPER}) == len(HOPPER)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("small", "EFFT_CUDA_PATH=small: this needs"),
        ("hopper", "EFFT_CUDA_PATH=hopper: this needs"),
        ("fast", "'fast'"),
    ],
)
def test_a_path_that_cannot_be_taken_says_so(path: str, words: str) -> None:
    said = _run("refused", EFFT_CUDA_PATH=path)
    assert said.returncode == 0, said.stderr[-2000:]
    assert words in said.stdout
    assert len(said.stdout.splitlines()) == 1
