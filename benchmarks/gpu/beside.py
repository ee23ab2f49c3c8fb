"""Two builds of the CUDA library on one GPU, in turns: are their results the same bits, and what does each take?

``python -m benchmarks.gpu.beside OLD_CPU OLD_CUDA NEW_CPU NEW_CUDA`` starts a process for each, since an operator can
be registered once, and asks them by turns. Both must have ``efft::encoder`` and ``efft::prepare``, the operators of
0.1.0, which every later library keeps. Random weights: fine for bits and for time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine, results
from benchmarks.workloads import make_workload, published

ROUNDS = 8
MILLISECONDS = 25.0
"""Of each build in each round."""

BASE = {"layers": 12, "hidden": 768, "embedding": 768, "heads": 12, "intermediate": 3072}
MODELS: dict[str, dict[str, Any]] = {
    "base": BASE,
    "large": {"layers": 24, "hidden": 1024, "embedding": 1024, "heads": 16, "intermediate": 4096},
    "minilm": {"layers": 6, "hidden": 384, "embedding": 384, "heads": 12, "intermediate": 1536},
    "pre-norm": {**BASE, "pre_norm": True},
    "roberta": {**BASE, "position_offset": 2, "count_positions": True},
    "electra": {"layers": 12, "hidden": 256, "embedding": 128, "heads": 4, "intermediate": 1024},
    "relu": {**BASE, "layers": 2, "activation": "relu"},
    "odd": {"layers": 2, "hidden": 312, "embedding": 312, "heads": 12, "intermediate": 1200},
}
FEW = ("1x32", "8x128", "32x384")
CASES = [
    *(("base", "fp16", size) for size in published("gpu")),
    *(("large", "fp16", size) for size in ("1x128", "8x384", "32x384")),
    *(("base", "bf16", size) for size in FEW),
    *(("base", "fp32", size) for size in FEW),
    *((model, "fp16", size) for model in ("minilm", "pre-norm", "roberta", "electra", "relu", "odd") for size in FEW),
]


def main() -> int:
    """Compare; returns the process's exit status: 1 where bits differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.beside", description=__doc__)
    parser.add_argument("libraries", nargs=4, type=Path, help="OLD_CPU OLD_CUDA NEW_CPU NEW_CUDA")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    parser.add_argument("--names", nargs=2, default=("old", "new"), help="what the two were built from")
    options = parser.parse_args()
    paths = [str(path) for path in options.libraries]
    builds = {"old": Build(paths[:2]), "new": Build(paths[2:])}
    rows = [_compare(builds, case) for case in CASES]
    for build in builds.values():
        build.close()
    differing = [row for row in rows if not row["same_bits"]]
    facts = machine.facts("cuda", machine.threads_available())
    settings = {"rounds": ROUNDS, "statistic": "medians of rounds in turns, between events of a busy stream"}
    print(
        results.save(
            "beside", {**facts, "settings": settings, "builds": list(options.names), "rows": rows}, options.output
        )
    )
    print(f"{len(rows)} cases, {len(differing)} with other bits")
    return 1 if differing else 0


class Build:
    """A process that has loaded one build's libraries."""

    def __init__(self, libraries: list[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.beside_worker", *libraries]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **question: Any) -> Any:
        """The worker's answer to one question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _compare(builds: dict[str, Build], case: tuple[str, str, str]) -> dict[str, Any]:
    model, data_type, size = case
    lengths = list(make_workload(size, "rand_r").lengths)
    question = {"model": MODELS[model], "data_type": data_type, "lengths": lengths, "padded": int(size.split("x")[1])}
    bits = {name: build.ask(what="bits", **question) for name, build in builds.items()}
    times: dict[str, list[float]] = {name: [] for name in builds}
    for name in _turns(list(builds)):
        times[name].append(builds[name].ask(what="time", milliseconds=MILLISECONDS))
    medians = {name: statistics.median(found) for name, found in times.items()}
    spread = {name: (max(found) - min(found)) / medians[name] for name, found in times.items()}
    ratio = medians["new"] / medians["old"]
    same = bits["old"] == bits["new"] and len(set(bits["new"])) == 1
    line = f"{model:9} {data_type} {size:7} old {medians['old']:.4f} new {medians['new']:.4f} ms  {ratio:.3f}"
    print(line, "same bits" if same else f"OTHER BITS {bits}", flush=True)
    return {
        "model": model, "data_type": data_type, "workload": size, "tokens": sum(lengths), "same_bits": same,
        "old_ms": medians["old"], "new_ms": medians["new"], "new_over_old": ratio, "spread": spread,
    }  # fmt: skip


def _turns(names: list[str]) -> Iterator[str]:
    for _ in range(ROUNDS):
        yield from random.sample(names, len(names))


if __name__ == "__main__":
    sys.exit(main())
