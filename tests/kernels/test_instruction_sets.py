"""Every table of CPU kernels that this processor runs, each in a process of its own: the choice is made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTION_SETS = ["portable", "avx2", "avx512", "avx512bf16", "amx"]
FLAGS = {"avx2": "avx2", "avx512": "avx512dq", "avx512bf16": "avx512_bf16", "amx": "amx_bf16"}
"""The flag of /proc/cpuinfo without which a table cannot run."""
DESCRIBE = """
import sys, torch
torch.ops.load_library(sys.argv[1])
print(torch.ops.efft.describe())
"""


@pytest.fixture(scope="module")
def library() -> str:
    from builder.compile import compile_cpu

    return os.environ.get("EFFT_CPU_LIBRARY") or str(compile_cpu())


def under(isa: str, library: str, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python process with one table of kernels."""
    environment = {**os.environ, "EFFT_ISA": isa, "EFFT_CPU_LIBRARY": library, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)


def has_flag(isa: str) -> bool:
    """Whether the system says that the processor can run a table; False where it does not say."""
    try:
        return f" {FLAGS[isa]} " in Path("/proc/cpuinfo").read_text().replace("\n", " ")
    except OSError:
        return False


@pytest.fixture
def isa(request: pytest.FixtureRequest, library: str) -> str:
    """An instruction set that this machine has."""
    result = under(request.param, library, "-c", DESCRIBE, library)
    if "this processor cannot run it" in result.stderr:
        assert not has_flag(request.param), f"/proc/cpuinfo has {FLAGS[request.param]}"
        pytest.skip(f"this processor lacks {request.param}")
    assert f"isa={request.param} " in result.stdout, result.stderr
    return request.param


@pytest.mark.parametrize("isa", INSTRUCTION_SETS, indirect=True)
def test_encoder_and_attention(isa: str, library: str) -> None:
    # Shapes whose depth, width and head size are no multiples of a tile's, and one whose are.
    shapes = "test_hidden_states and tile_edges and (hidden_312 or odd_intermediate or wide_head)"
    rounded = "test_error_is_that_of_the_scheme and hidden_312"
    one = "test_hidden_states and (all or many or wide or neighbours)"
    families = f"test_families and (({one}) or (blocks and many) or (seen_at_once and mpnet))"
    wanted = f"not cuda and (({shapes}) or ({rounded}) or ({families}) or (test_attention and (200 or large)))"
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "tests/kernels", "-k", wanted]
    result = under(isa, library, *arguments, "--ignore", str(Path(__file__).relative_to(ROOT)))
    assert result.returncode == 0, result.stdout[-3000:]


def test_unknown_one_is_named(library: str) -> None:
    result = under("sse9", library, "-c", DESCRIBE, library)
    assert result.returncode != 0
    assert "EFFT_ISA=sse9 is unknown" in result.stderr
