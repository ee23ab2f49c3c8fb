"""What tests/fresh.py promises of the processes that it forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fresh

MODULE = """
import os, sys
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 11)
print(__name__, sys.argv[1:], os.getcwd(), os.environ.get("ASKED"), os.getpid(), "EFFT_FRESH" in os.environ)
print("trouble", file=sys.stderr)
sys.exit({"three": 3, "text": "a line", "none": None}[sys.argv[1]])
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    (tmp_path / "said.py").write_text(f"import sys\nsys.path.append({str(tmp_path)!r})\n{MODULE}")
    return "said"


@pytest.mark.parametrize(("how", "status"), [("three", 3), ("text", 1), ("none", 0), ("kill", -11)])
def test_a_run_is_as_a_process_of_its_own_would_be(module: str, tmp_path: Path, how: str, status: int) -> None:
    environment = {**os.environ, "ASKED": "yes", "PYTHONPATH": str(tmp_path)}
    plain = subprocess.run(
        [sys.executable, "-m", module, how, "more"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    forked = fresh.run(module, how, "more", cwd=tmp_path, env=environment)
    assert forked.returncode == plain.returncode == status
    assert forked.stderr == plain.stderr
    without = [[w for w in text.split() if not w.isdigit()] for text in (plain.stdout, forked.stdout)]
    assert without[0] == without[1]
    assert str(os.getpid()) not in forked.stdout


def test_a_trace_goes_to_the_errors(tmp_path: Path) -> None:
    done = fresh.run("no_such_module")
    assert done.returncode == 1
    assert "no_such_module" in done.stderr
