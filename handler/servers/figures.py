"""A server's figures in Prometheus' form."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from handler.servers.batching import Observe
from handler.servers.model import ServedModel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures:
    """Of one process, which ``worker`` names: with several behind one address a scrape meets one of them."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        self.worker = str(os.getpid())
        self._seconds = Histogram(
            "efft_request_seconds", "From the first byte of a request to its reply.", ["worker", "protocol"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._replies = Counter(
            "efft_replies", "Replies by status.", ["worker", "protocol", "status"], registry=self._registry
        )
        self._stages = Histogram(
            "efft_stage_seconds", "A batch's stages.", ["worker", "model", "stage"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip

    @contextmanager
    def request(self, protocol: str) -> Iterator[Callable[[int], None]]:
        """Around a request; what it gives is told the reply's status."""
        start = time.perf_counter()
        statuses: list[int] = []
        try:
            yield statuses.append
        finally:
            self._seconds.labels(self.worker, protocol).observe(time.perf_counter() - start)
            self._replies.labels(self.worker, protocol, str(statuses[-1]) if statuses else "none").inc()

    def stages(self, model: str) -> Observe:
        """What a model's batcher tells its stages to."""
        known = {stage: self._stages.labels(self.worker, model, stage) for stage in ("encode", "run", "finish")}
        return lambda stage, seconds: known[stage].observe(seconds)

    def watch(self, model: ServedModel) -> None:
        """Show a model's totals and queue."""
        self._registry.register(_OfModel(model, self.worker))

    def text(self) -> bytes:
        """Everything, in the text format."""
        return generate_latest(self._registry)


class _OfModel(Collector):
    def __init__(self, model: ServedModel, worker: str) -> None:
        self._model = model
        self._labels = {"worker": worker, "model": model.name}

    def collect(self) -> Iterator[Metric]:
        names, values = list(self._labels), list(self._labels.values())
        errors = CounterMetricFamily(
            "efft_request_errors", "Inputs without an answer, by error.", labels=[*names, "error"]
        )
        for name, total in dict(self._model.predictor.metrics.totals).items():
            kind, dot, error = name.partition(".")
            if dot and kind == "errors":
                errors.add_metric([*values, error], total)
                continue
            family = CounterMetricFamily(f"efft_{name}", f"{name} since the start.".replace("_", " "), labels=names)
            family.add_metric(values, total)
            yield family
        yield errors
        batcher = self._model.batcher
        for name, text, value in (
            ("efft_calls", "Requests that wait or run.", batcher.calls),
            ("efft_waiting_sequences", "Tokenized sequences that wait for a pass.", batcher.waiting),
        ):
            gauge = GaugeMetricFamily(name, text, labels=names)
            gauge.add_metric(values, float(value))
            yield gauge
