"""Serves models in several ways, offers each the same load, and writes what reached the client, as it comes.

Without ``--archives`` one classifier: archives of it are built by kind and type, and peers serve the checkpoint. With
them archives as they are: of two commits under TorchServe, or one behind each of the product's servers.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import archives, machine, results, table, texts
from benchmarks.budget import Budget
from benchmarks.serving import empty, peers, plain, prepare, search
from benchmarks.serving.answers import ASKED, TOLERANCE, Agreement, Reference
from benchmarks.serving.engine import engine_rate
from benchmarks.serving.load import Refused
from benchmarks.serving.runs import Check, find, loops, sweep
from benchmarks.serving.servers import Served, TorchServe
from builder.inspection import read_facts

PEERS = ("plain", "litserve", "infinity")
OWN = ("torchserve", "torchserve-cpu", "http", "ray")
"""Servers of archives that are given."""
_TYPES = {**dict.fromkeys(prepare.KINDS, ("fp32", "bf16", "fp16", "int8")), **dict.fromkeys(PEERS, ("fp32", "bf16"))}
_TYPES[empty.NAME] = ()
_FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Of the best engine's throughput: the rates offered when none are given."""
_LONGEST = {"data": 128, "uniform": 128, "squad": 384}
"""Tokens, by mix."""


@dataclass(frozen=True)
class Candidate:
    """A server under its name in the result: how it is started, what it must pass first, what it is asked."""

    name: str
    served: Served
    check: Check
    payloads: Sequence[dict[str, Any]]
    engine: float | None = None
    """Sequences a second of the model alone, where it is known."""


@dataclass
class Run:
    """What all of a run's candidates are measured with."""

    candidates: list[Candidate]
    settings: dict[str, Any]
    engine_rates: dict[str, float]
    agreement: Agreement | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    sample = "build/samples/ticket_routing"
    parser.add_argument("--model", default=sample, help="a classifier's folder, or a size with random weights: base")
    parser.add_argument("--tokenizer", type=Path, default=Path(sample), help="a folder with a size's tokenizer")
    parser.add_argument("--archives", nargs="+", type=Path, default=[], metavar="NAME.mar", help="archives as they are")
    parser.add_argument("--data", type=Path, default=texts.TICKETS, help="TSV of texts and labels")
    parser.add_argument("--mix", choices=texts.MIXES, default="data", help="lengths of the texts (default: their own)")
    parser.add_argument(
        "--servers", nargs="+", metavar="NAME",
        help="ori, ths, thsext (default: these), plain, litserve, infinity, each also with a type (thsext:bf16), and "
        "empty: TorchServe with a handler that does nothing and the first archive's workers (with --connections); with "
        f"--archives: {', '.join(OWN)} (default: torchserve)",
    )  # fmt: skip
    parser.add_argument("--infinity", type=Path, help="infinity_emb's executable, of an environment of its own")
    parser.add_argument("--data-type", choices=("fp32", "bf16"), default="fp32", help="of archives named without one")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--rates", nargs="+", type=float, help="requests/s (default: by the best engine's throughput)")
    load.add_argument("--connections", nargs="+", type=int, help="closed loops of so many connections instead")
    load.add_argument("--p95", type=float, help="search the greatest rate whose 95th percentile is at most so many ms")
    parser.add_argument("--seconds", type=float, default=10, help="of each rate")
    parser.add_argument("--rounds", type=int, default=1, help="each serves all, every other one in the other order")
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most, for the whole run")
    parser.add_argument("--threads", type=int, default=machine.threads_available())
    parser.add_argument("--store", type=Path, help="keep the archives here and take those that are here already")
    parser.add_argument("--tune", action="store_true", help="tune archives that are not yet; else a worker a core")
    parser.add_argument(
        "--prepare", action="store_true", help="build and tune the archives of --store, measure nothing"
    )
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")


def run(options: argparse.Namespace) -> None:
    """Measure, write the JSON behind every row, print the table. Raises ValueError for options that do not fit."""
    end = time.monotonic() + 60 * options.minutes
    if options.prepare and (options.store is None or options.archives):
        raise ValueError("--prepare needs --store, and no --archives")
    with tempfile.TemporaryDirectory(prefix="efft-", dir="/tmp") as name:  # Ray's sockets want a short path
        made = _of_archives(options, Path(name)) if options.archives else _of_model(options, Path(name))
        if made is None:
            return
        device = "cuda" if machine.has_gpu() else "cpu"
        result = {**machine.facts(device, options.threads), "settings": made.settings}
        result |= {"engine_rate": made.engine_rates, "rows": [], "refused": {}}
        path = None
        for _ in measure(made.candidates, options, end, result):
            if made.agreement is not None:
                result["different_answers"] = made.agreement.different
            path = results.save("loops" if options.connections else "serving", result, options.output)
    if path is None:
        raise ValueError("nothing was measured within the run's time")
    table.print_all(results.load(path))
    print(path)


def measure(
    candidates: Sequence[Candidate], options: argparse.Namespace, end: float, result: dict[str, Any]
) -> Iterator[None]:
    """Fill in ``rows``, ``refused`` (why, by server) and, of a search, ``at_p95``: requests/s by server, the median of
    the rounds, None where none is slow enough. Yields whenever there is more; nothing begins that would end behind
    ``end`` (monotonic clock), and each server has an equal share of the time that is left."""
    rates = options.rates or [round(f * max(c.engine or 0.0 for c in candidates)) for f in _FRACTIONS]
    if not (options.p95 or options.connections or any(rates)):
        raise ValueError("none of these servers says what to offer; give --rates, --connections or --p95")
    turns = [(turn, one) for turn in range(options.rounds) for one in list(candidates)[:: 1 if turn % 2 == 0 else -1]]
    budget = Budget(end, [1.0] * len(turns))
    kept: dict[str, list[float]] = {}
    for turn, one in turns:
        until = budget.next()
        if one.name in result["refused"]:
            continue
        print(f"serving with {one.name}", file=sys.stderr)
        tried = []
        try:
            for row in _points(one, options, rates, until):
                share = {"engine_share": row["achieved"] / one.engine} if one.engine else {}
                tried.append({"server": one.name, "round": turn, **row, **share})
                result["rows"].append(tried[-1])
                print(f"  {_line(row)}", file=sys.stderr)
                yield
        except Refused as reason:
            print(f"  refused: {reason}", file=sys.stderr)
            result["refused"][one.name] = str(reason)
            result["rows"] = [row for row in result["rows"] if row["server"] != one.name]
            yield
            continue
        if options.p95 is not None and tried:
            best = max((row["achieved"] for row in tried if search.within(row, options.p95)), default=0.0)
            kept.setdefault(one.name, []).append(best)
            result["at_p95"] = {name: statistics.median(found) or None for name, found in kept.items()}
            yield


def _points(one: Candidate, options: argparse.Namespace, rates: list[float], until: float) -> Iterator[dict[str, Any]]:
    payloads = list(one.payloads)
    if options.connections:
        return loops(one.served, one.check, payloads, options.connections, options.seconds, until)
    if options.p95 is None:
        return sweep(one.served, one.check, payloads, rates, options.seconds, until)
    return find(one.served, one.check, payloads, options.p95, options.seconds, until)


def _line(row: dict[str, Any]) -> str:
    asked = f"{row['connections']} connections" if "connections" in row else f"{row['offered']:.1f}/s offered"
    p95 = "-" if row["p95"] is None else f"{row['p95']:.0f} ms"
    return f"{asked}, {row['achieved']:.1f}/s achieved, p95 {p95}"


def _of_archives(options: argparse.Namespace, folder: Path) -> Run:
    """Every archive behind every server; an archive's servers must answer as its first one does."""
    servers = options.servers or [OWN[0]]
    if wrong := [server for server in servers if server not in OWN]:
        raise ValueError(f"no server {wrong[0]!r} of archives; there are {', '.join(OWN)}")
    if len({file.stem for file in options.archives}) < len(options.archives):
        raise ValueError("--archives: two of them have the same name")
    tasks = {read_facts(file).task for file in options.archives}
    if len(tasks) > 1:
        raise ValueError(f"--archives of different tasks: {', '.join(sorted(tasks))}")
    asked, tokens = _texts(options, archives.tokenizer(options.archives[0], folder))
    payloads = texts.payloads(tasks.pop(), asked)
    agreement = Agreement(payloads[:: max(1, len(payloads) // ASKED)], len({s.endswith("-cpu") for s in servers}) > 1)
    candidates = []
    for file in options.archives:
        for server in servers:
            name = f"{file.stem}/{server}" if len(servers) > 1 else file.stem
            own = folder / f"{server}-{file.stem}"
            if server.startswith("torchserve"):
                served: Served = TorchServe(file.resolve(), own, cpu=server.endswith("-cpu"))
            else:
                served = peers.Own(server, file.resolve(), own)
            candidates.append(Candidate(name, served, partial(agreement.check, archive=file.stem), payloads))
    settings = _settings(options, tokens, {file.stem: file for file in options.archives})
    return Run(candidates, {**settings, "servers": servers}, {}, agreement)


def _of_model(options: argparse.Namespace, folder: Path) -> Run | None:
    """One classifier's archives of each kind and type, and peers; None where they are to be prepared only."""
    servers = [named(name, options.data_type) for name in options.servers or prepare.KINDS]
    if options.infinity is None and any(server.startswith("infinity") for server in servers):
        raise ValueError("--infinity must name infinity_emb's executable")
    model, longest = prepare.checkpoint(options.model, options.tokenizer, folder), _LONGEST[options.mix]
    asked, tokens = _texts(options, model / "tokenizer.json")
    payloads = texts.payloads("sequence_classification", asked)
    store = options.store or folder
    store.mkdir(parents=True, exist_ok=True)
    ours = [server for server in servers if server.partition(":")[0] in prepare.KINDS]
    files = {server: prepare.archive(server, model, longest, options.threads, store) for server in ours}
    if options.tune:
        prepare.tune(files, asked, folder, options.p95)
    if options.prepare:
        return None
    engines: dict[str, float] = {}
    if options.p95 is None and not options.connections:
        engines = {s: engine_rate(archives.load(f, folder / f.stem), payloads) for s, f in files.items()}
    for server in servers:
        if server.partition(":")[0] == "plain":
            files[server] = plain.build(model, data_type_of(server), longest, folder)
        elif server == empty.NAME:
            if not ours:
                raise ValueError("empty takes the first archive's workers: name ori, ths or thsext, too")
            files[server] = empty.build(files[ours[0]], folder)
    reference = Reference.of(model, asked, longest)
    candidates = []
    for server in servers:
        check: Check = partial(reference.check, tolerance=TOLERANCE[data_type_of(server)])
        if server == empty.NAME:
            check = _unchecked
        served = _served(server, options, model, longest, files, folder)
        candidates.append(Candidate(server, served, check, payloads, engines.get(server)))
    settings = _settings(options, tokens, files) | {"model": options.model}
    commands = [(c.name, c.served) for c in candidates if isinstance(c.served, peers.Command)]
    settings["peers"] = {name: served.settings() for name, served in commands}
    return Run(candidates, settings, engines)


def _texts(options: argparse.Namespace, tokenizer: Path) -> tuple[list[str], float]:
    """The texts, and their mean number of tokens."""
    asked = texts.mixed(options.mix, texts.tickets(options.data), tokenizer, _LONGEST[options.mix])
    return asked, round(texts.mean_tokens(asked, tokenizer), 1)


def _settings(options: argparse.Namespace, tokens: float, files: dict[str, Path]) -> dict[str, Any]:
    return {
        "data": options.data.name, "data_type": options.data_type, "mix": options.mix, "tokens": tokens,
        "seconds": options.seconds, "rounds": options.rounds, "p95": options.p95,
        "archives": {server: prepare.settings_of(file) for server, file in files.items()},
    }  # fmt: skip


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
