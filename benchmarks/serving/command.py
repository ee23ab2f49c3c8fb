"""Serves a classifier in several ways, offers each the same rates, and writes what reached the client."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import archives, machine, results, table
from benchmarks.accuracy.datasets import read_labels
from benchmarks.serving.load import Point, offer
from benchmarks.serving.servers import Infinity, LitServe, Served, TorchServe
from handler.config import SetupConfig
from handler.packing import Arrays
from handler.predictor import Predictor

KINDS = ("ori", "ths", "thsext")
_FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Of the best engine's throughput: the rates offered when none are given."""
_STAGES = ("decode", "encode", "run", "postprocess")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument(
        "--model", type=Path, default=Path("build/samples/ticket_routing"), help="a classifier's folder"
    )
    parser.add_argument("--data", type=Path, default=Path("samples/data/tickets.tsv"), help="TSV of texts and labels")
    parser.add_argument("--servers", nargs="+", choices=(*KINDS, "litserve", "infinity"), default=list(KINDS))
    parser.add_argument("--infinity", type=Path, help="infinity_emb's executable, of an environment of its own")
    parser.add_argument("--data-type", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rates", nargs="+", type=float, help="requests/s (default: by the best engine's throughput)")
    parser.add_argument("--seconds", type=float, default=10, help="of each rate")
    parser.add_argument("--threads", type=int, default=machine.threads_available())
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    if not options.model.is_dir():
        raise ValueError(f"no model in {options.model}; python -m samples build makes the sample")
    payloads = [example.payload for example in read_labels(options.data)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {kind: archives.build(_config(options, kind), folder) for kind in KINDS if kind in options.servers}
        engines = {kind: engine_rate(archives.load(f, folder / kind), payloads) for kind, f in files.items()}
        rates = options.rates or [round(f * max(engines.values())) for f in _FRACTIONS]
        rows: list[dict[str, Any]] = []
        for server in options.servers:
            print(f"serving with {server}", file=sys.stderr)
            for row in sweep(_served(server, options, files, folder), payloads, rates, options.seconds):
                rows.append({"server": server, **row, **_share(row, engines.get(server))})
                print(f"  {row['offered']:g}/s offered, {row['achieved']:.1f}/s achieved", file=sys.stderr)
    result = {
        **machine.facts("cpu", options.threads),
        "settings": {"data": options.data.name, "data_type": options.data_type, "seconds": options.seconds},
        "engine_rate": engines,
        "rows": rows,
    }
    path = results.save("serving", result, options.output)
    table.print_all(results.load(path))
    print(path)


def _config(options: argparse.Namespace, kind: str) -> SetupConfig:
    settings = {"model_name": str(options.model.resolve()), "name": f"serving-{kind}", "max_length": 128, "stride": 32}
    settings |= {"kind": kind, "data_type": options.data_type, "threads": options.threads}
    return SetupConfig.model_validate(settings)


def _served(server: str, options: argparse.Namespace, files: dict[str, Path], folder: Path) -> Served:
    if server in files:
        return TorchServe(files[server], folder / f"server-{server}")
    if server == "litserve":
        return LitServe(options.model, options.threads, folder)
    if options.infinity is None:
        raise ValueError("--infinity must name infinity_emb's executable")
    return Infinity(options.infinity, options.model, options.threads, folder)


class _Timed:
    """A model that counts its sequences and seconds."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.sequences, self.seconds = 0, 0.0

    def __call__(self, ids: Any, segments: Any, mask: Any) -> Arrays:
        start = time.perf_counter()
        outputs = self.model(ids, segments, mask)
        self.seconds += time.perf_counter() - start
        self.sequences += len(ids)
        return outputs


def engine_rate(predictor: Predictor, payloads: list[dict[str, Any]], batch: int = 32) -> float:
    """Sequences per second of the model alone on the same texts, in batches of ``batch``: the most a server can pass
    on to its clients."""
    timed = _Timed(predictor.model)
    measured = Predictor(predictor.facts, predictor.config, predictor.task.tokenizer, timed)
    rows = [{"body": payload} for payload in payloads]
    for _ in range(2):  # the first time round allocates and tunes
        timed.sequences, timed.seconds = 0, 0.0
        for start in range(0, len(rows), batch):
            measured.predict(rows[start : start + batch])
    return timed.sequences / timed.seconds


def sweep(
    served: Served, payloads: list[dict[str, Any]], rates: list[float], seconds: float
) -> Iterator[dict[str, Any]]:
    """Offer rising rates until the server falls behind; a result row for each."""
    bodies = [json.dumps(served.body(payload)) for payload in payloads]
    with served:
        offer(served.target, bodies, rates[0], 1.0)
        for rate in sorted(rates):
            before = served.metrics()
            point: Point = offer(served.target, bodies, rate, seconds)
            yield {**asdict(point), "stages_ms": stages(before, served.metrics())}
            if point.saturated:
                return


def stages(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Mean milliseconds of a request's wait in TorchServe's queue, and of each stage of a batch in the handler."""
    times = {name: after[f"efft_{name}_time"] for name in _STAGES if f"efft_{name}_time" in after}

    def gained(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    number = gained("ts_inference_requests_total")
    if number:
        times = {"queue": gained("ts_queue_latency_microseconds") / number / 1e3, **times}
    return times


def _share(row: dict[str, Any], engine: float | None) -> dict[str, float]:
    return {"engine_share": row["achieved"] / engine} if engine else {}
