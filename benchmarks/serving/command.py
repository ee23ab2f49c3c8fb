"""Serves a classifier in several ways, offers each the same rates, and writes what reached the client."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import archives, machine, results, table
from benchmarks.accuracy.datasets import read_labels
from benchmarks.serving import empty, inputs, peers, plain, prepare, search
from benchmarks.serving.answers import TOLERANCE, Reference
from benchmarks.serving.engine import engine_rate
from benchmarks.serving.load import Refused
from benchmarks.serving.runs import find, loops, sweep
from benchmarks.serving.servers import Served, TorchServe

PEERS = ("plain", "litserve", "infinity")
_TYPES = {**dict.fromkeys(prepare.KINDS, ("fp32", "bf16", "fp16", "int8")), **dict.fromkeys(PEERS, ("fp32", "bf16"))}
_TYPES[empty.NAME] = ()
_FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Of the best engine's throughput: the rates offered when none are given."""
_LONGEST = 128
"""Tokens, unless the mix has longer texts."""
_LONGEST_SQUAD = 384


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    sample = "build/samples/ticket_routing"
    parser.add_argument("--model", default=sample, help="a classifier's folder, or a size with random weights: base")
    parser.add_argument("--tokenizer", type=Path, default=Path(sample), help="a folder with a size's tokenizer")
    parser.add_argument("--data", type=Path, default=Path("samples/data/tickets.tsv"), help="TSV of texts and labels")
    parser.add_argument("--mix", choices=inputs.MIXES, default="data", help="lengths of the texts (default: their own)")
    parser.add_argument(
        "--servers", nargs="+", metavar="NAME", default=list(prepare.KINDS),
        help="ori, ths, thsext, plain, litserve, infinity, each also with a type (thsext:bf16), and empty: TorchServe "
        "with a handler that does nothing and the first archive's workers (with --connections)",
    )  # fmt: skip
    parser.add_argument("--infinity", type=Path, help="infinity_emb's executable, of an environment of its own")
    parser.add_argument("--data-type", choices=("fp32", "bf16"), default="fp32", help="of archives named without one")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--rates", nargs="+", type=float, help="requests/s (default: by the best engine's throughput)")
    load.add_argument("--connections", nargs="+", type=int, help="closed loops of so many connections instead")
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
    servers = [named(name, options.data_type) for name in options.servers]
    if options.prepare and options.store is None:
        raise ValueError("--prepare needs --store")
    if options.infinity is None and any(server.startswith("infinity") for server in servers):
        raise ValueError("--infinity must name infinity_emb's executable")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = inputs.checkpoint(options.model, options.tokenizer, folder)
        tokenizer, longest = model / "tokenizer.json", _LONGEST_SQUAD if options.mix == "squad" else _LONGEST
        texts = inputs.texts_of(options.mix, [e.payload["text"] for e in read_labels(options.data)], tokenizer, longest)
        store = options.store or folder
        store.mkdir(parents=True, exist_ok=True)
        ours = [server for server in servers if server.partition(":")[0] in prepare.KINDS]
        files = {server: prepare.archive(server, model, longest, options.threads, store) for server in ours}
        if options.tune:
            prepare.tune(files, texts, folder, options.p95)
        if options.prepare:
            return
        engines: dict[str, float] = {}
        if options.p95 is None and not options.connections:
            payloads = [{"text": text} for text in texts]
            engines = {s: engine_rate(archives.load(f, folder / f.stem), payloads) for s, f in files.items()}
        for server in servers:
            if server.partition(":")[0] == "plain":
                files[server] = plain.build(model, data_type_of(server), longest, folder)
            elif server == empty.NAME:
                if not ours:
                    raise ValueError("empty takes the first archive's workers: name ori, ths or thsext, too")
                files[server] = empty.build(files[ours[0]], folder)
        served = {server: _served(server, options, model, longest, files, folder) for server in servers}
        measured = _measure(served, options, engines, Reference.of(model, texts, longest), texts)
        settings = {
            "model": options.model, "data": options.data.name, "data_type": options.data_type, "mix": options.mix,
            "tokens": round(inputs.mean_tokens(texts, tokenizer), 1), "seconds": options.seconds, "p95": options.p95,
            "archives": {server: prepare.settings_of(file) for server, file in files.items()},
            "peers": {name: server.settings() for name, server in served.items() if isinstance(server, peers.Command)},
        }  # fmt: skip
        result = {**machine.facts("cpu", options.threads), "settings": settings, **measured}
    path = results.save("loops" if options.connections else "serving", result, options.output)
    table.print_all(results.load(path))
    print(path)


def _measure(
    servers: dict[str, Served],
    options: argparse.Namespace,
    engines: dict[str, float],
    reference: Reference,
    texts: list[str],
) -> dict[str, Any]:
    """``engine_rate``, ``rows``, ``refused`` (why, by server) and, of a search, ``at_p95``: requests/s by server, None
    where none is slow enough."""
    payloads = [{"text": text} for text in texts]
    offered = options.rates or [round(f * max(engines.values())) for f in _FRACTIONS if engines]
    if options.p95 is None and not offered and not options.connections:
        raise ValueError("none of these servers says what to offer; give --rates or --p95")
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    found: dict[str, float | None] = {}
    for server, served in servers.items():
        print(f"serving with {server}", file=sys.stderr)
        check: Any = partial(reference.check, tolerance=TOLERANCE[data_type_of(server)])
        if server == empty.NAME:
            check = _unchecked
        own: list[dict[str, Any]] = []
        try:
            if options.connections:
                points = loops(served, check, payloads, options.connections, options.seconds)
            elif options.p95 is None:
                points = sweep(served, check, payloads, offered, options.seconds)
            else:
                points = find(served, check, payloads, options.p95, options.seconds)
            for row in points:
                own.append({"server": server, **row, **_share(row, engines.get(server))})
                p95 = "-" if row["p95"] is None else f"{row['p95']:.0f} ms"
                asked = (
                    f"{row['connections']} connections" if options.connections else f"{row['offered']:.1f}/s offered"
                )
                figures = f"{asked}, {row['achieved']:.1f}/s achieved, p95 {p95}"
                print(f"  {figures}", file=sys.stderr)
        except Refused as reason:
            print(f"  refused: {reason}", file=sys.stderr)
            refused[server] = str(reason)
            continue
        rows += own
        if options.p95 is not None:
            kept = [row for row in own if search.within(row, options.p95)]
            found[server] = max((row["achieved"] for row in kept), default=None)
    measured = {"engine_rate": engines, "rows": rows, "refused": refused}
    return measured if options.p95 is None else {**measured, "at_p95": found}


def _unchecked(served: Served) -> None:
    """The empty handler answers everything alike."""


def named(server: str, data_type: str) -> str:
    """A server's full name: archives with their type. Raises ValueError for one there is not."""
    kind, _, given = server.partition(":")
    if kind not in _TYPES:
        raise ValueError(f"no server {server!r}; there are {', '.join(_TYPES)}")
    if given and given not in _TYPES[kind]:
        raise ValueError(f"no server {server!r}; {kind}'s types are {', '.join(_TYPES[kind])}")
    return f"{kind}:{given or data_type}" if kind in prepare.KINDS else server


def data_type_of(server: str) -> str:
    """A server's type by its full name; a peer without one has fp32."""
    return server.partition(":")[2] or "fp32"


def _served(
    server: str, options: argparse.Namespace, model: Path, longest: int, files: dict[str, Path], folder: Path
) -> Served:
    if server in files:
        return TorchServe(files[server], folder / f"server-{server.replace(':', '-')}")
    if server.startswith("litserve"):
        return peers.LitServe(model, data_type_of(server), longest, options.threads, folder)
    return peers.Infinity(options.infinity, model, data_type_of(server), options.threads, folder)


def _share(row: dict[str, Any], engine: float | None) -> dict[str, float]:
    return {"engine_share": row["achieved"] / engine} if engine else {}
