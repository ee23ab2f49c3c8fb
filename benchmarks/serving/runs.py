"""What is done with one server: it is checked, warmed up and loaded, a result row for each load, until a given time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from benchmarks import machine
from benchmarks.serving import search
from benchmarks.serving.load import WARM_UP, Point, burst, closed, exercise, offer
from benchmarks.serving.servers import Served

Check = Callable[[Served], None]
"""Raises Refused where a running server's answers are wrong."""
_STAGES = ("decode", "encode", "run", "postprocess", "respond")


def sweep(
    served: Served, check: Check, payloads: list[dict[str, Any]], rates: list[float], seconds: float,
    until: float = math.inf,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Offer rising rates until the server falls behind; a result row for each that ends before ``until`` (monotonic
    clock)."""
    bodies = [json.dumps(served.body(payload)) for payload in payloads]
    with served:
        check(served)
        exercise(served.target)
        offer(served.target, bodies, rates[0], 1.0)
        for rate in sorted(rates):
            if _late(seconds, until):
                return
            row = _row(served, bodies, rate, seconds)
            yield row
            if row["saturated"]:
                return


def loops(
    served: Served, check: Check, payloads: list[dict[str, Any]], connections: list[int], seconds: float,
    until: float = math.inf,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Closed loops of every number of connections; a result row for each that ends before ``until``."""
    bodies = [json.dumps(served.body(payload)) for payload in payloads]
    with served:
        check(served)
        exercise(served.target)
        for number in connections:
            if _late(seconds, until):
                return
            with _Spent(served) as spent:
                loop = closed(served.target, bodies, number, seconds, warm_up=0)
            sent = max(1.0, loop.requests_per_second * seconds)
            yield {
                "achieved": loop.requests_per_second,
                **asdict(loop),
                **spent.row(sent, loop.generator_cores * seconds),
            }


def find(
    served: Served, check: Check, payloads: list[dict[str, Any]], limit: float, seconds: float, until: float = math.inf
) -> Iterator[dict[str, Any]]:
    """Search the greatest rate whose 95th percentile is within ``limit`` milliseconds; a result row for each tried
    before ``until``."""
    bodies = [json.dumps(served.body(payload)) for payload in payloads]
    with served:
        check(served)
        exercise(served.target)
        most = search.capacity(lambda number: burst(served.target, bodies, number))
        for row in search.rates(most, limit, lambda rate: _row(served, bodies, rate, seconds)):
            yield row
            if _late(seconds, until):
                return


def _late(seconds: float, until: float) -> bool:
    return time.monotonic() + WARM_UP + seconds > until


def _row(served: Served, bodies: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """One rate's figures."""
    with _Spent(served) as spent:
        point: Point = offer(served.target, bodies, rate, seconds)
    row = asdict(point)
    sent = max(1, round(rate * WARM_UP) + round(rate * seconds))
    generator = row.pop("generator_ms") * sent / 1e3
    return {**row, "saturated": point.saturated, **spent.row(sent, generator)}


class _Spent:
    """What a server's parts, its stages and the rest of the machine took while something ran."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def __enter__(self) -> _Spent:
        self.metrics, self.used = self.served.metrics(), self.served.processor_seconds()
        self.watch = machine.Watch().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.__exit__()
        used = self.served.processor_seconds()
        self.parts = {name: after - self.used[name] for name, after in used.items() if name in self.used}
        self.metrics = stages(self.metrics, self.served.metrics())

    def row(self, sent: float, generator: float) -> dict[str, Any]:
        """``processor_ms``: processor time per request of each part, the load generator's (``generator``, in seconds)
        included; ``others``: cores that other programs took."""
        parts = {**self.parts, "load_generator": generator}
        others = self.watch.others - sum(self.parts.values()) / self.watch.elapsed
        return {
            "processor_ms": {name: 1e3 * seconds / sent for name, seconds in parts.items()},
            "stages_ms": self.metrics,
            "others": round(max(0.0, others), 2),
        }


def stages(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Mean milliseconds of a request's wait in TorchServe's queue, and of each stage of a batch in the handler."""
    # Of an archive whose handler has no histograms: the last second's.
    times = {name: after[f"efft_{name}_time"] for name in _STAGES if f"efft_{name}_time" in after}

    def gained(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    for name in _STAGES:
        if batches := gained(f"efft_stage_seconds_count:{name}"):
            times[name] = 1e3 * gained(f"efft_stage_seconds_sum:{name}") / batches
    number = gained("ts_inference_requests_total")
    if number:
        times = {"queue": gained("ts_queue_latency_microseconds") / number / 1e3, **times}
    return times
