"""The check for a machine with a GPU: correctness, memory safety, speed; results as one JSON file.

``python -m benchmarks.gpu_check`` runs everything; ``--only`` picks stages. Exits non-zero when a stage fails, or where
an output of our own encoder is not right.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import floor, libraries, machine, results
from benchmarks.floor import Ceilings
from benchmarks.gpu import encoders, rows
from benchmarks.gpu.encoders import WORKLOADS
from benchmarks.gpu.engines import Engines
from benchmarks.measuring import PLAIN, first_line
from tests.gpu import sanitizers

ROOT = Path(__file__).resolve().parent.parent
LARGE_BYTES = 32 << 30
"""Of device memory for a test marked ``large``: scores of 16 heads over 8,192 tokens in float64, three times."""
_PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_STAGES, default=list(_STAGES), help="stages to run")
    parser.add_argument("--peers", nargs="*", choices=(*encoders.PEERS, PLAIN), default=list(encoders.PEERS))
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device", file=sys.stderr)
        return 1
    for (device, tests), variable in libraries.VARIABLES.items():  # for the tests and the sanitizers, too
        os.environ[variable] = str(libraries.library(device, tests))
    libraries.load("cuda")
    check = Check(options.peers, "cuda", {"library": torch.ops.efft.describe_cuda()})
    check.output = options.output
    return run(check, options.only, options.output)


def run(check: Check, stages: Sequence[str], folder: Path) -> int:
    """Run stages by name and save what they find; returns the process's exit status."""
    for stage in [name for name in _STAGES if name in stages]:
        print(f"== {stage}", flush=True)
        start = time.monotonic()
        try:
            _STAGES[stage](check)
        except Exception as error:  # the device may be lost, but what was found, and what other processes find, is not
            traceback.print_exc()
            check.checks[stage] = first_line(error)
        print(f"{stage} took {time.monotonic() - start:.0f} s", flush=True)
        path = results.save("encoder", check.result(), folder)
    print(path)
    for failure in check.engines.failures:
        print(f"not right: {failure}")
    failed = [name for name, passed in check.checks.items() if passed is not True]
    print(f"gpu-check: {'failed: ' + ', '.join(failed) if failed else 'passed'}")
    return 1 if failed else 0


class Check:
    """What the stages have found so far. ``more`` goes into the result as it is."""

    def __init__(self, peers: Sequence[str], device: str, more: dict[str, object]) -> None:
        self.peers = peers
        self.engines = Engines(device)
        self.checks: dict[str, bool | str] = {}
        self.ceilings = Ceilings({}, 0.0)
        self.rows: list[dict[str, Any]] = []
        self.more = more
        self.output = results.RESULTS
        self.facts = machine.facts(device, machine.threads_available())

    def rates(self, data_type: str) -> Ceilings:
        """The ceilings with those of ``data_type`` measured now."""
        found = floor.measure((data_type,), "cuda", torch.cuda.synchronize)
        self.ceilings = self.ceilings.merged(found)
        rate = found.operations.get(data_type, 0.0)
        print(f"ceilings: {rate / 1e12:.0f} TFLOP/s {data_type}, {self.ceilings.bytes / 1e12:.2f} TB/s", flush=True)
        return self.ceilings

    def measure(self, model: str, data_type: str, sizes: Sequence[str], peers: Sequence[str], rates: Ceilings) -> None:
        """Add the rows of a model in a type."""
        self.rows += encoders.measure(self.engines, model, data_type, sizes, peers, rates)
        self.judge()

    def judge(self) -> None:
        """Our own outputs are right so far, or they are not."""
        self.checks["outputs"] = not self.engines.failures

    def result(self) -> dict[str, Any]:
        """As the encoder benchmark writes it, with the checks' outcomes."""
        return {
            **self.facts,
            "settings": {"interleaved": True, "statistic": "median and quartiles between events of a busy stream"},
            "ceilings": asdict(self.ceilings),
            "checks": self.checks,
            **self.more,
            "rows": self.rows,
            "absent": self.engines.absent,
            "memory": [],
        }


def _tests(check: Check) -> None:
    """The tests and, side by side with them, the sanitizers: both spend most of their time on the host."""
    workers = str(min(12, max(1, machine.threads_available() - 2)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    together = [*_PYTEST, "-n", workers, "tests/gpu", "tests/kernels", "-k", "not cpu", "-m", "not alone and not large"]
    alone = [*_PYTEST, "tests/gpu", "-m", "alone"]
    check.checks["alone"] = subprocess.run(alone, cwd=ROOT, env=environment, check=False).returncode == 0
    tests = subprocess.Popen(together, cwd=ROOT, env=environment)
    running = {name: sanitizers.start(name, ROOT, environment) for name in sanitizers.TOOLS}
    check.checks["tests"] = tests.wait() == 0
    for name, process in running.items():
        if process is None:
            print(f"compute-sanitizer not found: {name} left out")
            check.checks[name] = "compute-sanitizer not found"
            continue
        output, _ = process.communicate()
        verdict = sanitizers.judge(output, process.returncode)
        again = sanitizers.start(name, ROOT, environment) if verdict.nameless else None
        if again is not None:
            print(f"{name}: {verdict.summary}, not all with a kernel's name; once more", flush=True)
            output, _ = again.communicate()
            verdict = sanitizers.judge(output, again.returncode)
        print(output if not verdict.passed else f"{name}: {verdict.summary}", flush=True)
        check.checks[name] = verdict.passed
        check.more[name] = verdict.summary


def _real_sizes(check: Check) -> None:
    """Each family's base model through the gate: as many at a time as the device's memory holds."""
    _, memory = torch.cuda.mem_get_info()
    workers = max(1, min(4, memory // LARGE_BYTES, machine.threads_available() // 2))
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, machine.threads_available() // workers))}
    command = [*_PYTEST, "-n", str(workers), "-s", "tests/gpu", "-m", "large"]
    check.checks["real_sizes"] = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def _rows(check: Check) -> None:
    outcome = rows.measure(torch.float16, floor.copy_rate("cuda", torch.cuda.synchronize))
    for name, figures in outcome.items():
        print(f"{name:16} {figures['microseconds']:6.2f} us  {figures['share_of_copy_rate']:.0%} of the copy rate")
    check.more["row_kernels"] = outcome


def _encoders(check: Check) -> None:
    rates = check.rates("fp16")
    check.measure("base", "fp16", WORKLOADS, check.peers, rates)
    check.engines.release()
    # torch 2.11's compiled graph of 32x384 faulted here, too (see encoders.COMPILED).
    peers = [peer for peer in check.peers if peer != "compile"]
    check.measure("large", "fp16", encoders.LARGE, peers, rates)
    check.engines.release()


def _types(check: Check) -> None:
    check.measure("base", "bf16", WORKLOADS, ["packed"], check.rates("bf16"))
    check.more["bf16_over_fp16"] = encoders.type_ratios(check.engines, "base", "bf16", "fp16", WORKLOADS)
    check.judge()
    check.engines.release()
    for data_type in ("fp32", "tf32"):
        check.measure("base", data_type, WORKLOADS, ["ths"], check.rates(data_type))
    check.engines.release()


def _eight_bits(check: Check) -> None:
    """Beside fp16 of the same process: no row may be slower."""
    for data_type in ("fp8", "int8"):
        rates = check.rates(data_type)
        check.measure("base", data_type, WORKLOADS, ["packed"], rates)
        check.measure("large", data_type, encoders.LARGE, ["packed"], rates)
        check.more[f"{data_type}_over_fp16"] = {
            model: encoders.type_ratios(check.engines, model, data_type, "fp16", sizes)
            for model, sizes in (("base", WORKLOADS), ("large", encoders.LARGE))
        }
        outcome = encoders.stream(check.engines, data_type)
        check.judge()
        check.engines.release()
        if outcome:
            print(f"SQuAD-like stream, BERT-large {data_type}: {outcome['sequences_per_second']:.0f} sequences/s")
            check.more[f"stream_{data_type}"] = outcome
        results.save("encoder", check.result(), check.output)  # each type takes a minute: what there is, is kept


def _devices(check: Check) -> None:
    """One archive of each type, opened on the CPU and on the GPU: int8 must answer alike on both."""
    command = [sys.executable, "-m", "benchmarks", "accuracy", "--task", "samples", "--devices", "cpu", "cuda"]
    command += ["--jobs", str(max(1, machine.threads_available() // 3)), "--output", str(check.output)]
    check.checks["devices"] = subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _stream(check: Check) -> None:
    outcome = encoders.stream(check.engines, "fp16")
    check.judge()
    check.engines.release()
    if outcome:
        print(f"SQuAD-like stream, BERT-large fp16: {outcome['sequences_per_second']:.0f} sequences/s")
        check.more["stream"] = outcome


# Times first, on a device that no test has heated.
_STAGES: dict[str, Callable[[Check], None]] = {
    "rows": _rows,
    "encoders": _encoders,
    "types": _types,
    "eight_bits": _eight_bits,
    "stream": _stream,
    "devices": _devices,
    "real_sizes": _real_sizes,
    "tests": _tests,
}


if __name__ == "__main__":
    sys.exit(main())
