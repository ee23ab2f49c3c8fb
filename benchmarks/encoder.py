"""``python -m benchmarks encoder``: encoders side by side, interleaved, checked, against the machine's floor."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, memory, results, table
from benchmarks.deviation import deviation
from benchmarks.engines import ENGINES, LOOP, Engine, Loop
from benchmarks.floor import Ceilings, measure
from benchmarks.models import Source, load_source, reference
from benchmarks.timing import interleave
from benchmarks.workloads import DISTRIBUTIONS, Batch, Workload, make_batch, make_workload
from builder.families import shape_of

QUANTISED = ("int8",)
"""Types without a plain PyTorch form to compare errors with."""
PADDING = ("full", "half", "uniform", "rand_r")
"""Length distributions from no padding to the most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--models", nargs="+", default=["minilm", "base"], help="minilm, base, large or folders")
    parser.add_argument("--workloads", nargs="+", default=["1x32", "1x128", "8x128", "32x128"], metavar="BxS")
    parser.add_argument("--lengths", nargs="+", choices=DISTRIBUTIONS, help="default: uniform, on a GPU rand_r")
    parser.add_argument("--padding", metavar="BxS", default="8x128", help="size measured with every share of padding")
    parser.add_argument("--types", nargs="+", choices=("fp32", "bf16", "fp16", "int8"), default=["fp32"])
    parser.add_argument("--engines", nargs="+", metavar="NAME", help=f"{', '.join(ENGINES)}, each also with {LOOP}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=machine.threads_available())
    parser.add_argument("--seconds", type=float, default=10, help="measuring time of one workload in one type")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")


@dataclass(frozen=True)
class Setting:
    """What every measurement of a run shares."""

    device: str
    threads: int
    seconds: float

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def run(options: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    torch.set_num_threads(options.threads)
    setting = Setting(options.device, options.threads, options.seconds)
    distributions = options.lengths or ["rand_r" if options.device == "cuda" else "uniform"]
    workloads = choose_workloads(options.workloads, distributions, options.padding)
    names = check_names(options.engines or list(ENGINES))
    before = measure(tuple(options.types), setting.device, setting.synchronize)
    rows, absent, shapes = [], [], {}
    for model in options.models:
        source = load_source(model)
        shapes[source.name] = shape_of(source.config)
        for data_type in options.types:
            found, missing = _measure(source, data_type, names, workloads, setting)
            rows += found
            absent += missing
    ceilings = before.merged(measure(tuple(options.types), setting.device, setting.synchronize))
    _add_floors(rows, ceilings, shapes, workloads)
    result = {
        **machine.facts(options.device, options.threads),
        "settings": {"seconds": options.seconds, "interleaved": True, "statistic": "median and quartiles of calls"},
        "ceilings": asdict(ceilings),
        "rows": rows,
        "absent": absent,
        "memory": _memory(options, rows, distributions[0]) if options.memory else [],
    }
    path = results.save("encoder", result, options.output)
    table.print_all(results.load(path))
    print(path)


def choose_workloads(sizes: list[str], distributions: list[str], padding: str | None) -> list[Workload]:
    """Each size with each distribution, and the size ``padding`` with all that vary its share of padding."""
    wanted = [(size, distribution) for distribution in distributions for size in sizes]
    wanted += [(padding, distribution) for distribution in PADDING if padding in sizes]
    chosen: dict[tuple[str, tuple[int, ...]], Workload] = {}
    for size, distribution in wanted:
        workload = make_workload(size, distribution)
        chosen.setdefault((workload.name, workload.lengths), workload)
    return list(chosen.values())


def check_names(names: list[str]) -> list[str]:
    """Raises ValueError for an engine that is not in the table."""
    for name in names:
        if name.removesuffix(LOOP) not in ENGINES:
            raise ValueError(f"no engine {name!r}; there are {', '.join(ENGINES)}, each also with {LOOP}")
    return names


def _measure(
    source: Source, data_type: str, names: list[str], workloads: list[Workload], setting: Setting
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    engines, absent = build(source, data_type, names, setting)
    rows = []
    for workload in workloads:
        batch = make_batch(workload, source.config.vocab_size, setting.device)
        print(f"{source.name} {data_type} {workload.name} {workload.distribution}", file=sys.stderr)
        rows += [
            {"model": source.name, "data_type": data_type, **describe(workload), **row}
            for row in _workload(engines, source, batch, data_type, setting)
        ]
    del engines
    gc.collect()
    torch.compiler.reset()
    return rows, absent


def describe(workload: Workload) -> dict[str, Any]:
    """A workload as a result row carries it."""
    return {
        "workload": workload.name,
        "lengths": workload.distribution,
        "tokens": workload.tokens,
        "padding_share": round(workload.padding_share, 4),
    }


def build(
    source: Source, data_type: str, names: list[str], setting: Setting
) -> tuple[dict[str, Engine], list[dict[str, str]]]:
    """The engines that can run, by name, and the others with the reason why not."""
    engines: dict[str, Engine] = {}
    absent = []
    for base in dict.fromkeys(name.removesuffix(LOOP) for name in names):
        reason = ENGINES[base].absent(data_type, setting.device)
        if reason is None:
            try:
                engines[base] = ENGINES[base](source, data_type, setting.device, setting.threads)
            except Exception as error:  # a peer that fails to convert must not end the run; its reason is reported
                reason = first_line(error)
        if reason is not None:
            absent.append({"engine": base, "model": source.name, "data_type": data_type, "reason": reason})
    chosen = {name: engines[name.removesuffix(LOOP)] for name in names if name.removesuffix(LOOP) in engines}
    return {name: Loop(e) if name.endswith(LOOP) else e for name, e in chosen.items()}, absent


def first_line(error: Exception) -> str:
    """An exception as one line of at most 200 characters."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:200]


def _workload(
    engines: dict[str, Engine], source: Source, batch: Batch, data_type: str, setting: Setting
) -> list[dict[str, Any]]:
    """Check every engine's output, then time those that are right."""
    expected = reference(source, batch, setting.device)
    plain = None if data_type in QUANTISED else _plain_error(source, batch, data_type, expected, setting)
    calls: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, engine in engines.items():
        try:
            call = engine.bind(batch)
            found = deviation(engine.valid(call(), batch), expected, batch.workload.lengths)
        except Exception as error:  # as in build()
            rows[name] = {"engine": name, "refused": first_line(error)}
            continue
        refusal = found.refusal(data_type, plain)
        rows[name] = {"engine": name, "refused": refusal, "plain_error": plain, **asdict(found)}
        if refusal is None:
            calls[name] = call
    for name, timing in interleave(calls, setting.seconds, setting.synchronize).items():
        rows[name] |= {"median_ms": timing.median, "lower_ms": timing.lower, "upper_ms": timing.upper}
        rows[name]["rounds"] = timing.rounds
    return list(rows.values())


def _plain_error(source: Source, batch: Batch, data_type: str, expected: Tensor, setting: Setting) -> float:
    eager = ENGINES["ori"](source, data_type, setting.device, setting.threads)
    return deviation(eager.valid(eager.bind(batch)(), batch), expected, batch.workload.lengths).error


def _add_floors(
    rows: list[dict[str, Any]], ceilings: Ceilings, shapes: dict[str, Any], workloads: list[Workload]
) -> None:
    by_name = {(w.name, w.distribution): w for w in workloads}
    for row in rows:
        workload = by_name[row["workload"], row["lengths"]]
        row["floor_ms"] = ceilings.floor_ms(shapes[row["model"]], workload, row["data_type"])
        if row["floor_ms"] and "median_ms" in row:
            row["floor_ratio"] = row["median_ms"] / row["floor_ms"]


def _memory(options: argparse.Namespace, rows: list[dict[str, Any]], lengths: str) -> list[dict[str, Any]]:
    """Peak memory of each engine that was timed, at the last workload of each model and type."""
    measured = []
    size = options.workloads[-1]
    for model in options.models:
        name = load_source(model).name if "/" in model else model
        for data_type in options.types:
            engines = {r["engine"] for r in rows if (r["model"], r["data_type"]) == (name, data_type) and "rounds" in r}
            for engine in [e for e in ENGINES if e in engines]:
                print(f"memory of {engine}, {name} {data_type}", file=sys.stderr)
                peak = memory.peak_mib(engine, model, data_type, options.device, options.threads, size, lengths)
                entry = {"engine": engine, "model": name, "data_type": data_type, "workload": size}
                measured.append({**entry, "peak_mib": round(peak, 1)})
    return measured
