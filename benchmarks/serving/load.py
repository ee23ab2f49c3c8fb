"""Offers requests with wrk, at a rate (an open loop) or from so many connections (a closed one), and sums up.

A closed loop (a user waits for its answer before it asks again) slows down with the server and hides its queue;
Schroeder, Wierman and Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006. wrk is a C program: a load
generator in Python takes the cores that it measures.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 2.0
"""Seconds of the same load before every run; they do not count."""
GRACE = 3.0
"""Seconds to wait for answers after the last request of an open loop."""
REFUSED, REFUSED_RATE = 7200, 600.0
"""Requests that warm a front end up, and how many of them a second."""
PATIENCE = 60.0
"""Seconds for the answers to a burst."""
LATE = 5.0
"""Milliseconds that 95 % of an open loop's requests may be sent too late; more, and no connection was free."""
_CONNECTIONS = 1000
"""Most connections of an open loop: TorchServe's queue holds as many."""
_SCRIPT = Path(__file__).with_name("wrk.lua")


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
    late_ms: float = 0.0
    """How late 95 % of the requests were sent at most; the latencies include it."""

    @property
    def saturated(self) -> bool:
        """Whether the server fell behind."""
        return self.achieved < 0.85 * self.offered


@dataclass(frozen=True)
class Loop:
    """A closed loop's figures: requests/s that were answered with 200, latencies in milliseconds (None where nothing
    was answered), and what failed."""

    connections: int
    requests_per_second: float
    p50: float | None
    p95: float | None
    p99: float | None
    failed: int
    generator_cores: float
    """Of the machine, that the load generator kept busy."""


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in seconds of a Poisson process, given that it offers exactly ``rate`` on average.

    Given their number, a Poisson process' arrivals are independent and uniform.
    """
    generator = np.random.default_rng(seed)
    return [float(t) for t in np.sort(generator.uniform(0, seconds, max(1, round(rate * seconds))))]


def offer(target: Target, bodies: Sequence[str], rate: float, seconds: float, seed: int = 0) -> Point:
    """An open loop for ``seconds`` after a warm-up. Raises ValueError with wrk's last line when it fails."""
    connections = max(16, min(_CONNECTIONS, round(2 * rate)))
    _run(target, bodies, arrivals(rate, WARM_UP, seed + 1), connections)
    times = arrivals(rate, seconds, seed)
    result, cpu = _run(target, bodies, times, connections, seconds)
    return replace(summarise(result, len(times), rate, seconds), generator_ms=1e3 * cpu / len(times))


def closed(
    target: Target, bodies: Sequence[str], connections: int, seconds: float, threads: int = 1, warm_up: float = WARM_UP
) -> Loop:
    """A closed loop of so many connections for ``seconds`` after a warm-up."""
    threads = min(threads, connections)
    if warm_up:
        _run(target, bodies, [], connections, warm_up, threads)
    result, cpu = _run(target, bodies, [], connections, seconds, threads)
    duration = result["microseconds"] / 1e6
    failed = result["status_errors"] + result["socket_errors"] + result["timeouts"]
    found = [None if p is None else round(p, 3) for p in percentiles(result["histogram"], 0)]
    answered = (result["requests"] - result["status_errors"]) / duration
    return Loop(connections, round(answered, 1), *found, failed, round(cpu / duration, 2))


def row(loop: Loop) -> dict[str, Any]:
    """As a result keeps it."""
    return asdict(loop)


def burst(target: Target, bodies: Sequence[str], number: int) -> float:
    """Send ``number`` requests at once; the seconds until the last answer.

    Raises Refused where fewer than all are answered well.
    """
    result, _ = _run(target, bodies, [0.0] * number, number, patience=PATIENCE)
    good = sum(thread["good"] for thread in result["threads"])
    if good < number:
        raise Refused(f"of {number} requests sent at once {number - good} were not answered")
    return max(thread["latest"] for thread in result["threads"])


def exercise(target: Target) -> None:
    """Let the front end compile its code: requests that are refused at once cost the model nothing.

    Java interprets what it runs first and compiles it by and by: TorchServe's time for a request falls from 2 ms to a
    quarter of that within the first 8,000.
    """
    _run(target, ["{}"], [number / REFUSED_RATE for number in range(REFUSED)], 64)


def wrk() -> str:
    """The program: what the environment's ``EFFT_WRK`` names, else the one on the PATH. Raises ValueError."""
    found = os.environ.get("EFFT_WRK") or shutil.which("wrk")
    if not found:
        raise ValueError("wrk, the load generator, is not installed: apt-get install wrk, or name it in EFFT_WRK")
    return found


def _run(
    target: Target,
    bodies: Sequence[str],
    times: Sequence[float],
    connections: int,
    seconds: float = 0.0,
    threads: int = 1,
    patience: float = GRACE,
) -> tuple[dict[str, Any], float]:
    """One run of wrk: what its script has written, and the processor time that it took."""
    with tempfile.TemporaryDirectory() as folder:
        plan, result = Path(folder) / "plan", Path(folder) / "result.json"
        headers = {**target.headers, "Content-Type": "application/json"}
        lines = [f"path {target.path}", *(f"header {name} {value}" for name, value in headers.items())]
        lines += [f"body {body}" for body in bodies]
        lines += [f"window {seconds}"] * bool(seconds) + [f"at {time:.6f}" for time in times]
        plan.write_text("\n".join(lines) + "\n", encoding="utf-8")
        length = math.ceil((times[-1] if times else 0) + patience) if times else math.ceil(seconds)
        command = [wrk(), f"-t{threads}", f"-c{connections}", f"-d{length}s", "--timeout", "60s", "-s", str(_SCRIPT)]
        environment = {**os.environ, "EFFT_PLAN": str(plan), "EFFT_RESULT": str(result), "EFFT_THREADS": str(threads)}
        if times:
            environment["EFFT_COUNT"] = "1"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, target.url], env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if not result.exists():
            reason = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"wrk: {reason}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return json.loads(result.read_text()), cpu


def percentiles(histogram: Sequence[Sequence[int]], lost: int) -> list[float | None]:
    """The 50th, 95th and 99th in milliseconds, of [value in microseconds, count]; ``lost`` more are infinitely late.

    A percentile among those is None.
    """
    total = sum(count for _, count in histogram) + lost
    found: list[float | None] = []
    if total == 0:
        return [None] * 3
    for share in (0.50, 0.95, 0.99):
        wanted, seen, value = math.ceil(share * total), 0, None
        for microseconds, count in histogram:
            seen += count
            if seen >= wanted:
                value = microseconds / 1e3
                break
        found.append(value)
    return found


def summarise(result: dict[str, Any], sent: int, rate: float, seconds: float) -> Point:
    """A point from what wrk's script has written. What was not answered, or not well, counts as infinitely late."""
    threads = result["threads"]
    good = sum(thread["good"] for thread in threads)
    late = sorted(tuple(pair) for thread in threads for pair in thread["late"])
    behind = percentiles([(1000 * milliseconds, count) for milliseconds, count in late], 0)[1] or 0.0
    extra = behind if behind > LATE else 0.0  # below, it is the timer's whole milliseconds
    found = [None if p is None else p + extra for p in percentiles(result["histogram"], sent - good)]
    finished = sum(thread["finished"] for thread in threads)
    return Point(rate, finished / seconds, sent - good, *found, good, late_ms=behind)
