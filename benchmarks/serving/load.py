"""Offers a rate of requests with locust and sums up what came back."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import ROOT

WARM_UP = 2.0
"""Seconds at the beginning of every run that do not count."""

REFUSED, REFUSED_RATE = 7200, 600.0
"""Requests that warm a front end up, and how many of them a second."""


class Refused(ValueError):
    """A server cannot be measured; the message says why. The others can."""


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    url: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Point:
    """One offered rate. Rates in requests/s, latencies in milliseconds since each request was due."""

    offered: float
    achieved: float
    failed: int
    p50: float | None
    p95: float | None
    p99: float | None
    requests: int
    generator_ms: float = 0.0
    """The load generator's own processor time for a request, which it takes from the same machine."""

    @property
    def saturated(self) -> bool:
        """Whether the server fell behind."""
        return self.achieved < 0.85 * self.offered


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in seconds of a Poisson process, given that it offers exactly ``rate`` on average.

    Given their number, a Poisson process' arrivals are independent and uniform.
    """
    generator = np.random.default_rng(seed)
    warm = generator.uniform(0, WARM_UP, round(rate * WARM_UP))
    counted = generator.uniform(WARM_UP, WARM_UP + seconds, max(1, round(rate * seconds)))
    return [float(t) for t in np.sort(np.concatenate((warm, counted)))]


def offer(target: Target, bodies: Sequence[str], rate: float, seconds: float, seed: int = 0) -> Point:
    """Run locust for ``seconds`` after a warm-up. Raises ValueError with locust's last line when it fails."""
    times = arrivals(rate, seconds, seed)
    samples, cpu = _run(target, bodies, times)
    return replace(summarise(samples, len(times), rate, seconds), generator_ms=1e3 * cpu / len(times))


def burst(target: Target, bodies: Sequence[str], number: int) -> float:
    """Send ``number`` requests at once; the seconds until the last good answer.

    Raises Refused where fewer than all are answered.
    """
    answers, _ = _run(target, bodies, [0.0] * number)
    samples = [(due, latency) for due, latency, status in answers if status == 200]
    if len(samples) < number:
        raise Refused(f"of {number} requests sent at once {number - len(samples)} were not answered")
    return max(due + latency for due, latency in samples)


def exercise(target: Target) -> None:
    """Let the front end compile its code: requests that are refused at once cost the model nothing.

    Java interprets what it runs first and compiles it by and by: TorchServe's time for a request falls from 2 ms to a
    quarter of that within the first 8,000.
    """
    _run(target, ["{}"], [number / REFUSED_RATE for number in range(REFUSED)])


def _run(target: Target, bodies: Sequence[str], times: Sequence[float]) -> tuple[list[tuple[float, float, int]], float]:
    """One run of locust: (due, latency in seconds, status) of each answered request, and the processor time of all."""
    with tempfile.TemporaryDirectory() as folder:
        samples, plan = Path(folder) / "samples.json", Path(folder) / "plan.json"
        facts = {"arrivals": list(times), "bodies": list(bodies), "path": target.path, "headers": target.headers}
        plan.write_text(json.dumps({**facts, "samples": str(samples)}))
        command = [
            sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), "--headless",
            "--users", "1", "--host", target.url, "--loglevel", "ERROR", "--only-summary",
        ]  # fmt: skip
        environment = {**os.environ, "EFFT_PLAN": str(plan)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if not samples.exists():
            raise ValueError(f"locust: {(result.stderr.strip().splitlines() or ['no message'])[-1]}")
        written = json.loads(samples.read_text())
        return [(due, latency, status) for due, latency, status in written["samples"]], written["processor_seconds"]


def summarise(samples: Sequence[Sequence[Any]], sent: int, rate: float, seconds: float) -> Point:
    """A point from (due, latency, status) samples; what has no sample was not answered in time.

    What was not answered, or not well, counts as infinitely late; a percentile among those is None.
    """
    counted = [latency for due, latency, status in samples if due >= WARM_UP and status == 200]
    lost = sent - len(samples) + sum(due >= WARM_UP and status != 200 for due, _, status in samples)
    finished = sum(WARM_UP <= due + latency < WARM_UP + seconds for due, latency, status in samples if status == 200)
    failed = sent - sum(status == 200 for _, _, status in samples)
    latencies = [1e3 * latency for latency in counted] + [math.inf] * lost or [math.inf]
    found = np.percentile(latencies, (50, 95, 99), method="higher")  # between a latency and infinity there is nothing
    p50, p95, p99 = (float(p) if math.isfinite(p) else None for p in found)
    return Point(rate, finished / seconds, failed, p50, p95, p99, len(counted))
