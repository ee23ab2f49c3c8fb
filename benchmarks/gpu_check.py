"""The check for a machine with a GPU: correctness, memory safety, speed; results as one JSON file.

``python -m benchmarks.gpu_check`` runs everything; ``--only`` picks stages. Exits non-zero when a stage fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, results
from benchmarks.floor import Ceilings
from benchmarks.gpu import ceilings, encoders, rows, sanitizers
from benchmarks.gpu.workloads import LENGTHS
from builder import ops
from builder.compile import compile_cpu, compile_cuda

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_STAGES, default=list(_STAGES), help="stages to run")
    parser.add_argument("--peers", nargs="*", choices=encoders.PEERS, default=list(encoders.PEERS))
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device", file=sys.stderr)
        return 1
    _load_libraries()
    check = Check(options.peers)
    for stage in [name for name in _STAGES if name in options.only]:
        print(f"== {stage}", flush=True)
        _STAGES[stage](check)
        path = results.save("encoder", check.result(), options.output)  # what is known so far is not lost
    print(path)
    failed = [name for name, passed in check.checks.items() if passed is not True]
    print(f"gpu-check: {'failed: ' + ', '.join(failed) if failed else 'passed'}")
    return 1 if failed else 0


class Check:
    """What the stages have found so far."""

    def __init__(self, peers: Sequence[str]) -> None:
        self.peers = peers
        self.checks: dict[str, bool | str] = {}
        self.ceilings = Ceilings({}, 0.0)
        self.rows: list[dict[str, object]] = []
        self.more: dict[str, object] = {}
        self.facts = machine.facts("cuda", machine.threads_available())

    def rates(self, data_type: str) -> Ceilings:
        """The ceilings with those of ``data_type`` measured now."""
        torch.backends.cuda.matmul.allow_tf32 = data_type == "tf32"
        rate = ceilings.matrix_rate(encoders.DTYPES[data_type])
        torch.backends.cuda.matmul.allow_tf32 = False
        self.ceilings = self.ceilings.merged(Ceilings({}, ceilings.copy_rate()))
        self.ceilings.operations[data_type] = rate
        print(f"ceilings: {rate / 1e12:.0f} TFLOP/s {data_type}, {self.ceilings.bytes / 1e12:.2f} TB/s", flush=True)
        return self.ceilings

    def result(self) -> dict[str, Any]:
        """As the encoder benchmark writes it, with the checks' outcomes."""
        return {
            **self.facts,
            "library": torch.ops.efft.describe_cuda(),
            "settings": {"interleaved": True, "statistic": "median and quartiles between events of a busy stream"},
            "ceilings": asdict(self.ceilings),
            "checks": self.checks,
            **self.more,
            "rows": self.rows,
            "absent": [],
            "memory": [],
        }


def _load_libraries() -> None:
    major, minor = torch.cuda.get_device_capability()
    target = "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
    os.environ.setdefault("EFFT_CPU_LIBRARY", "") or os.environ.update(EFFT_CPU_LIBRARY=str(compile_cpu()))
    os.environ.setdefault("EFFT_CUDA_LIBRARY", "") or os.environ.update(EFFT_CUDA_LIBRARY=str(compile_cuda([target])))
    ops.load(Path(os.environ["EFFT_CPU_LIBRARY"]))
    torch.ops.load_library(os.environ["EFFT_CUDA_LIBRARY"])


def _tests(check: Check) -> None:
    """The tests and, side by side with them, the sanitizers: both spend most of their time on the host."""
    workers = str(min(12, max(1, machine.threads_available() - 2)))
    pytest = [sys.executable, "-m", "pytest", "-n", workers, "-p", "no:cacheprovider"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tests = subprocess.Popen([*pytest, "tests/gpu", "tests/kernels", "-k", "not cpu"], cwd=ROOT, env=environment)
    running = {name: sanitizers.start(name, ROOT, environment) for name in sanitizers.TOOLS}
    check.checks["tests"] = tests.wait() == 0
    for name, process in running.items():
        if process is None:
            print(f"compute-sanitizer not found: {name} left out")
            check.checks[name] = "compute-sanitizer not found"
            continue
        output, _ = process.communicate()
        verdict = sanitizers.judge(output, process.returncode)
        print(output if not verdict.passed else f"{name}: {verdict.summary}", flush=True)
        check.checks[name] = verdict.passed
        check.more[name] = verdict.summary


def _rows(check: Check) -> None:
    outcome = rows.measure(torch.float16, ceilings.copy_rate())
    for name, figures in outcome.items():
        print(f"{name:16} {figures['microseconds']:6.2f} us  {figures['share_of_copy_rate']:.0%} of the copy rate")
    check.more["row_kernels"] = outcome


def _encoders(check: Check) -> None:
    rates = check.rates("fp16")
    check.rows += encoders.measure("base", "fp16", list(LENGTHS), check.peers, rates)
    # torch 2.11's compiled graph of 32x384 faults here, too (see encoders.measure).
    peers = [peer for peer in check.peers if peer != "compile"]
    check.rows += encoders.measure("large", "fp16", encoders.LARGE, peers, rates)


def _types(check: Check) -> None:
    check.rows += encoders.measure("base", "bf16", list(LENGTHS), ["packed"], check.rates("bf16"))
    check.more["bf16_over_fp16"] = encoders.over("base", "bf16", "fp16", list(LENGTHS))
    for data_type in ("fp32", "tf32"):
        check.rows += encoders.measure("base", data_type, list(LENGTHS), ["ths"], check.rates(data_type))


def _stream(check: Check) -> None:
    outcome = encoders.stream(torch.float16)
    print(f"SQuAD-like stream, BERT-large fp16: {outcome['sequences_per_second']:.0f} sequences/s")
    check.more["stream"] = outcome


# Times first, on a device that no test has heated.
_STAGES: dict[str, Callable[[Check], None]] = {
    "rows": _rows,
    "encoders": _encoders,
    "types": _types,
    "stream": _stream,
    "tests": _tests,
}


if __name__ == "__main__":
    sys.exit(main())
