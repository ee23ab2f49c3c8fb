"""compute-sanitizer over the small encoders of ``sanitized.py``, and what its report says of this project's kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("memcheck", "racecheck")
_CUBLASLT = "nvjet"
"""In the names of cuBLASLt's kernels for Hopper, within which racecheck (CUDA 13.0) reports hazards.

Leaving them out with ``--kernel-name-exclude`` is no way out: they then end with an illegal memory access.
"""


@dataclass(frozen=True)
class Verdict:
    """Whether a run had nothing to say of our kernels, and its outcome in one line."""

    passed: bool
    summary: str
    nameless: bool = False
    """Whether the report leaves out a kernel's name, as racecheck does now and then: another run tells whose it is."""


def start(tool: str, root: Path, environment: Mapping[str, str]) -> subprocess.Popen[str] | None:
    """The sanitizer at work on the small encoders, or None where there is no compute-sanitizer."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return None
    # Without torch's caching allocator, within whose blocks memcheck sees no overrun.
    environment = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, sys.executable, "-m", "tests.gpu.sanitized"]
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def judge(output: str, status: int) -> Verdict:
    """Passed: the program came to its end, and every finding that the sanitizer counts lies in cuBLASLt's kernels."""
    found = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", output)
    if status != 0 or found is None or "Internal Sanitizer Error" in output:
        return Verdict(False, f"did not come to its end (exit status {status})")
    findings = int(found.group(1))
    # Both accesses of a hazard name their kernel.
    foreign = len(re.findall(rf"Race reported between \w+ access at {_CUBLASLT}.*\n.* access at {_CUBLASLT}", output))
    summary = f"{findings} findings, {foreign} of them within cuBLASLt's own kernels"
    return Verdict(findings == foreign, summary, re.search(r"access at\s+(?:\[|\n)", output) is not None)
