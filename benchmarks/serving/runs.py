"""What is done with one server: it is checked, warmed up and offered rates, a result row for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from benchmarks.serving import search
from benchmarks.serving.load import WARM_UP, Point, burst, closed, exercise, offer
from benchmarks.serving.servers import Served

Check = Callable[[Served], None]
"""Raises Refused where a running server's answers are wrong."""
_STAGES = ("decode", "encode", "run", "postprocess", "respond")


def sweep(
    served: Served, check: Check, payloads: list[dict[str, Any]], rates: list[float], seconds: float
) -> Iterator[dict[str, Any]]:
    """Offer rising rates until the server falls behind; a result row for each."""
    bodies = [json.dumps(served.body(payload)) for payload in payloads]
    with served:
        check(served)
        exercise(served.target)
        offer(served.target, bodies, rates[0], 1.0)
        for rate in sorted(rates):
            row = _row(served, bodies, rate, seconds)
            yield row
            if row["saturated"]:
                return


def loops(
    served: Served, check: Check, payloads: list[dict[str, Any]], connections: list[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Closed loops of every number of connections; a result row for each."""
    bodies = [json.dumps(served.body(payload)) for payload in payloads]
    with served:
        check(served)
        exercise(served.target)
        for number in connections:
            metrics, used = served.metrics(), served.processor_seconds()
            loop = closed(served.target, bodies, number, seconds, warm_up=0)
            sent = max(1.0, loop.requests_per_second * seconds)
            parts = {name: 1e3 * (after - used[name]) / sent for name, after in served.processor_seconds().items()}
            parts["load_generator"] = 1e3 * loop.generator_cores * seconds / sent
            figures = {"achieved": loop.requests_per_second, **asdict(loop)}
            yield {**figures, "processor_ms": parts, "stages_ms": stages(metrics, served.metrics())}


def find(
    served: Served, check: Check, payloads: list[dict[str, Any]], limit: float, seconds: float
) -> Iterator[dict[str, Any]]:
    """Search the greatest rate whose 95th percentile is within ``limit`` milliseconds; a result row for each tried."""
    bodies = [json.dumps(served.body(payload)) for payload in payloads]
    with served:
        check(served)
        exercise(served.target)
        most = search.capacity(lambda number: burst(served.target, bodies, number))
        yield from search.rates(most, limit, lambda rate: _row(served, bodies, rate, seconds))


def _row(served: Served, bodies: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """One rate's figures. ``processor_ms``: processor time per request of each part, the load generator's included."""
    metrics, used = served.metrics(), served.processor_seconds()
    point: Point = offer(served.target, bodies, rate, seconds)
    row = asdict(point)
    sent = max(1, round(rate * WARM_UP) + round(rate * seconds))
    parts = {name: 1e3 * (after - used[name]) / sent for name, after in served.processor_seconds().items()}
    row["processor_ms"] = {**parts, "load_generator": row.pop("generator_ms")}
    return {**row, "saturated": point.saturated, "stages_ms": stages(metrics, served.metrics())}


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
