"""The check for a machine with a GPU: correctness, memory safety, speed; results as one JSON file.

``python -m benchmarks.gpu_check`` runs everything; ``--only`` picks stages. Exits non-zero when a stage fails.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import ceilings, encoders, rows
from benchmarks.gpu.workloads import LENGTHS
from builder import ops
from builder.compile import compile_cpu, compile_cuda

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("tests", "sanitizer", "rows", "encoders", "types", "stream")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="stages to run")
    parser.add_argument(
        "--peers", nargs="*", choices=("packed", "torchscript", "compile"), default=["packed", "torchscript"]
    )
    parser.add_argument("--output", type=Path, help="where the JSON goes (default: benchmarks/results/)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device", file=sys.stderr)
        return 1
    _load_libraries()
    result: dict[str, object] = {"about": facts()}
    failed = []
    for stage in STAGES:
        if stage not in options.only:
            continue
        print(f"== {stage}", flush=True)
        outcome = _STAGES[stage](options)
        result[stage] = outcome
        if outcome is False:
            failed.append(stage)
    path = options.output or ROOT / "benchmarks" / "results" / f"gpu-{_slug(torch.cuda.get_device_name())}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"gpu-check: {'failed: ' + ', '.join(failed) if failed else 'passed'}; {path.name} written")
    return 1 if failed else 0


def facts() -> dict[str, object]:
    """The device, the versions and the commit that figures belong to."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(),
        "library": torch.ops.efft.describe_cuda(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "commit": os.environ.get("EFFT_COMMIT") or commit.stdout.strip() or "unknown",
    }


def _load_libraries() -> None:
    major, minor = torch.cuda.get_device_capability()
    target = "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
    os.environ.setdefault("EFFT_CPU_LIBRARY", "") or os.environ.update(EFFT_CPU_LIBRARY=str(compile_cpu()))
    os.environ.setdefault("EFFT_CUDA_LIBRARY", "") or os.environ.update(EFFT_CUDA_LIBRARY=str(compile_cuda([target])))
    ops.load(Path(os.environ["EFFT_CPU_LIBRARY"]))
    torch.ops.load_library(os.environ["EFFT_CUDA_LIBRARY"])


def _tests(_: argparse.Namespace) -> bool:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/gpu",
        "tests/kernels",
        "-k",
        "not cpu",
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _sanitizer(_: argparse.Namespace) -> object:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        print("compute-sanitizer not found: stage left out")
        return "compute-sanitizer not found"
    passed = True
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu.sanitized"]
        passed &= subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    return passed


def _rates(dtype: torch.dtype) -> dict[str, float]:
    return {"matrix": ceilings.matrix_rate(dtype), "copy": ceilings.copy_rate()}


def _rows(_: argparse.Namespace) -> object:
    outcome = rows.measure(torch.float16, ceilings.copy_rate())
    for name, figures in outcome.items():
        print(f"{name:16} {figures['microseconds']:6.2f} us  {figures['share_of_copy_rate']:.0%} of the copy rate")
    return outcome


def _encoders(options: argparse.Namespace) -> object:
    rates = _rates(torch.float16)
    print(f"ceilings: {rates['matrix'] / 1e12:.0f} TFLOP/s, {rates['copy'] / 1e12:.2f} TB/s")
    table = encoders.measure("base", torch.float16, list(LENGTHS), options.peers, rates)
    table += encoders.measure("large", torch.float16, encoders.LARGE, options.peers, rates)
    return {"ceilings": rates, "rows": table}


def _types(_: argparse.Namespace) -> object:
    table = encoders.measure("base", torch.bfloat16, list(LENGTHS), [], _rates(torch.bfloat16))
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        print(f"fp32, tf32 {'on' if tf32 else 'off'}")
        part = encoders.measure("base", torch.float32, list(LENGTHS), ["torchscript"], _rates(torch.float32))
        table += [{**row, "tf32": tf32} for row in part]
    torch.backends.cuda.matmul.allow_tf32 = False
    return table


def _stream(_: argparse.Namespace) -> object:
    outcome = encoders.stream(torch.float16)
    print(f"SQuAD-like stream, BERT-large fp16: {outcome['sequences_per_second']:.0f} sequences/s")
    return outcome


_STAGES = {
    "tests": _tests,
    "sanitizer": _sanitizer,
    "rows": _rows,
    "encoders": _encoders,
    "types": _types,
    "stream": _stream,
}


def _slug(name: str) -> str:
    return "-".join(name.lower().split())


if __name__ == "__main__":
    sys.exit(main())
