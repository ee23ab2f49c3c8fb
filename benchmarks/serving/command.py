"""Serves a classifier in several ways, offers each the same rates, and writes what reached the client."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks import archives, machine, results, table
from benchmarks.accuracy.datasets import read_labels
from benchmarks.serving import inputs, search
from benchmarks.serving.load import WARM_UP, Point, burst, exercise, offer
from benchmarks.serving.servers import Infinity, LitServe, Served, TorchServe
from builder.inspection import read_facts
from builder.tune_workers import Setting, replace_files, server_settings
from handler.config import SetupConfig
from handler.packing import Arrays
from handler.predictor import Predictor
from handler.threads import available_cores

KINDS = ("ori", "ths", "thsext")
_FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Of the best engine's throughput: the rates offered when none are given."""
_STAGES = ("decode", "encode", "run", "postprocess")
_LONGEST = 128
"""Tokens, unless the mix has longer texts."""
_LONGEST_SQUAD = 384
_TUNING_SECONDS = 2.0
_BATCH = {"ori": 2, "ths": 2, "thsext": 8}
"""Requests in a batch of archives that are not tuned: those that cost least processor time each (docs/cpu.md). Padded
encoders like them small, for pads cost them time; packed ones as large as their activations fit into the cache."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    sample = "build/samples/ticket_routing"
    parser.add_argument("--model", default=sample, help="a classifier's folder, or a size with random weights: base")
    parser.add_argument("--tokenizer", type=Path, default=Path(sample), help="a folder with a size's tokenizer")
    parser.add_argument("--data", type=Path, default=Path("samples/data/tickets.tsv"), help="TSV of texts and labels")
    parser.add_argument("--mix", choices=inputs.MIXES, default="data", help="lengths of the texts (default: their own)")
    parser.add_argument(
        "--servers", nargs="+", metavar="NAME", default=list(KINDS),
        help="ori, ths, thsext, also with a type (thsext:bf16), litserve, infinity",
    )  # fmt: skip
    parser.add_argument("--infinity", type=Path, help="infinity_emb's executable, of an environment of its own")
    parser.add_argument("--data-type", choices=("fp32", "bf16"), default="fp32", help="of archives named without one")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--rates", nargs="+", type=float, help="requests/s (default: by the best engine's throughput)")
    load.add_argument("--p95", type=float, help="search the greatest rate whose 95th percentile is at most so many ms")
    parser.add_argument("--seconds", type=float, default=10, help="of each rate")
    parser.add_argument("--threads", type=int, default=machine.threads_available())
    parser.add_argument("--store", type=Path, help="keep the archives here and take those that are here already")
    parser.add_argument("--tune", action="store_true", help="tune archives that are not yet; else a worker a core")
    parser.add_argument(
        "--prepare", action="store_true", help="build and tune the archives of --store, measure nothing"
    )
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    servers = [_named(name, options.data_type) for name in options.servers]
    if options.prepare and options.store is None:
        raise ValueError("--prepare needs --store")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = inputs.checkpoint(options.model, options.tokenizer, folder)
        tokenizer, longest = model / "tokenizer.json", _longest(options.mix)
        texts = inputs.texts_of(options.mix, [e.payload["text"] for e in read_labels(options.data)], tokenizer, longest)
        store = options.store or folder
        store.mkdir(parents=True, exist_ok=True)
        files = {s: _archive(s, options, model, longest, store) for s in servers if s.partition(":")[0] in KINDS}
        for server, file in files.items():
            _settle(file, server.partition(":")[0])
        if options.tune:
            _tune(files, texts, folder)
        if options.prepare:
            return
        measured = _measure(servers, options, model, files, texts, folder)
        settings = {
            "model": options.model, "data": options.data.name, "data_type": options.data_type, "mix": options.mix,
            "tokens": round(inputs.mean_tokens(texts, tokenizer), 1), "seconds": options.seconds, "p95": options.p95,
            "archives": {server: _server_settings(file) for server, file in files.items()},
        }  # fmt: skip
        result = {**machine.facts("cpu", options.threads), "settings": settings, **measured}
    path = results.save("serving", result, options.output)
    table.print_all(results.load(path))
    print(path)


def _measure(
    servers: list[str],
    options: argparse.Namespace,
    model: Path,
    files: dict[str, Path],
    texts: list[str],
    folder: Path,
) -> dict[str, Any]:
    """``engine_rate``, ``rows`` and, of a search, ``at_p95``: requests/s by server, None where none is slow enough."""
    payloads = [{"text": text} for text in texts]
    engines: dict[str, float] = {}
    if options.p95 is None:
        engines = {s: engine_rate(archives.load(f, folder / f.stem), payloads) for s, f in files.items()}
    offered = options.rates or [round(f * max(engines.values())) for f in _FRACTIONS if engines]
    if options.p95 is None and not offered:
        raise ValueError("none of these servers says what to offer; give --rates or --p95")
    rows: list[dict[str, Any]] = []
    found: dict[str, float | None] = {}
    for server in servers:
        print(f"serving with {server}", file=sys.stderr)
        served = _served(server, options, model, files, folder)
        if options.p95 is None:
            points = sweep(served, payloads, offered, options.seconds)
        else:
            points = find(served, payloads, options.p95, options.seconds)
        for row in points:
            rows.append({"server": server, **row, **_share(row, engines.get(server))})
            figures = f"{row['offered']:.1f}/s offered, {row['achieved']:.1f}/s achieved, p95 {row['p95']:.0f} ms"
            print(f"  {figures}", file=sys.stderr)
        if options.p95 is not None:
            kept = [row for row in rows if row["server"] == server and search.within(row, options.p95)]
            found[server] = max((row["achieved"] for row in kept), default=None)
    return {"engine_rate": engines, "rows": rows, **({"at_p95": found} if options.p95 is not None else {})}


def _named(server: str, data_type: str) -> str:
    """A server's full name: archives with their type. Raises ValueError for one there is not."""
    kind, _, given = server.partition(":")
    if kind in KINDS and given in ("", "fp32", "bf16", "fp16", "int8"):
        return f"{kind}:{given or data_type}"
    if server in ("litserve", "infinity"):
        return server
    raise ValueError(f"no server {server!r}; there are {', '.join(KINDS)}, each also with :TYPE, litserve and infinity")


def _longest(mix: str) -> int:
    return _LONGEST_SQUAD if mix == "squad" else _LONGEST


def _archive(server: str, options: argparse.Namespace, model: Path, longest: int, store: Path) -> Path:
    """The archive of a server in the store, built where it is not there yet."""
    kind, data_type = server.split(":")
    name = f"{model.name}-{kind}-{data_type}-{longest}"
    if (store / f"{name}.mar").is_file():
        return store / f"{name}.mar"
    settings = {"model_name": str(model), "name": name, "max_length": longest, "stride": 32}
    settings |= {"kind": kind, "data_type": data_type, "threads": options.threads}
    return archives.build(SetupConfig.model_validate(settings), store)


def _settle(archive: Path, kind: str) -> None:
    """Give an archive that is not tuned a worker with one pinned thread on each core, and its kind's batches."""
    if read_facts(archive).tuned:
        return
    with zipfile.ZipFile(archive) as packed:
        settings = yaml.safe_load(packed.read("model-config.yaml"))
    wanted = {**settings, **server_settings(Setting(available_cores(), 1, _BATCH[kind], 1), pin=True)}
    if wanted != settings:
        replace_files(archive, {"model-config.yaml": yaml.safe_dump(wanted, sort_keys=True).encode()})


def _tune(files: dict[str, Path], texts: list[str], folder: Path) -> None:
    """By the builder's own command, as a user would, with the very texts that are measured."""
    mix = folder / "mix.txt"
    mix.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for server, file in files.items():
        if read_facts(file).tuned:
            continue
        print(f"tuning {server}", file=sys.stderr)
        command = [sys.executable, "-m", "builder", "tune", str(file), "--mix", str(mix)]
        command += ["--for", "throughput", "--seconds", str(_TUNING_SECONDS)]
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or ["the builder failed"])[-1])
        print(done.stdout, file=sys.stderr)


def _server_settings(archive: Path) -> dict[str, Any]:
    with zipfile.ZipFile(archive) as packed:
        settings = yaml.safe_load(packed.read("model-config.yaml"))
    return {key: settings.get(key) for key in ("maxWorkers", "batchSize", "maxBatchDelay", "handler")}


def _served(server: str, options: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path) -> Served:
    if server in files:
        return TorchServe(files[server], folder / f"server-{server.replace(':', '-')}")
    if server == "litserve":
        return LitServe(model, options.threads, folder)
    if options.infinity is None:
        raise ValueError("--infinity must name infinity_emb's executable")
    return Infinity(options.infinity, model, options.threads, folder)


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
        exercise(served.target)
        offer(served.target, bodies, rates[0], 1.0)
        for rate in sorted(rates):
            row = _row(served, bodies, rate, seconds)
            yield row
            if row["saturated"]:
                return


def find(served: Served, payloads: list[dict[str, Any]], limit: float, seconds: float) -> Iterator[dict[str, Any]]:
    """Search the greatest rate whose 95th percentile is within ``limit`` milliseconds; a result row for each tried."""
    bodies = [json.dumps(served.body(payload)) for payload in payloads]
    with served:
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
    times = {name: after[f"efft_{name}_time"] for name in _STAGES if f"efft_{name}_time" in after}

    def gained(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    number = gained("ts_inference_requests_total")
    if number:
        times = {"queue": gained("ts_queue_latency_microseconds") / number / 1e3, **times}
    return times


def _share(row: dict[str, Any], engine: float | None) -> dict[str, float]:
    return {"engine_share": row["achieved"] / engine} if engine else {}
