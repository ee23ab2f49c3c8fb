"""``python -m benchmarks encoder``: encoders side by side, interleaved, checked, against the machine's floor."""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, memory, results, table
from benchmarks.budget import Budget
from benchmarks.engines import ENGINES, LOOP, everything
from benchmarks.floor import Ceilings, measure
from benchmarks.measuring import Group, Setting
from benchmarks.models import NAMES, Source, load_source
from benchmarks.timing import CLOCKS, MIN_ROUNDS
from benchmarks.workloads import DISTRIBUTIONS, Workload, make_workload
from builder.errors import BuildError
from builder.families import spec_of

PADDING = ("full", "half", "uniform", "rand_r")
"""Length distributions from no padding to the most."""
OVERRUN = 0.5
"""Of the time that later types would have, the share that a type may take for the fewest rounds of all workloads."""
VISITS = 8
"""How often a run comes back to each workload; where a round takes long, only MIN_ROUNDS of these have one."""
SPARE_SHARE = 0.2
"""Of a type's time, at least: for more than MIN_ROUNDS of what takes little time."""
MEMORY_SHARE = 0.3
"""Of a type's time after building, at most: peak memory is measured in processes that build once more."""
MEMORY_SECONDS = 8
"""What such a process takes besides: it starts Python, loads torch and the model, and runs the largest workload."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument(
        "--models", nargs="+", default=["minilm", "base"], help=f"{', '.join(NAMES)} or folders; NAME@1: one layer"
    )
    parser.add_argument(
        "--workloads", nargs="+", default=["1x32", "1x128", "8x128", "32x128"], metavar="BxS",
        help="for one model only: MODEL:BxS",
    )  # fmt: skip
    parser.add_argument("--lengths", nargs="+", choices=DISTRIBUTIONS, help="default: uniform, on a GPU rand_r")
    parser.add_argument(
        "--padding", metavar="BxS", default="8x128", help="size with every share of padding, or none; MODEL:BxS"
    )
    parser.add_argument("--types", nargs="+", choices=("fp32", "bf16", "fp16", "int8"), default=["fp32"])
    parser.add_argument("--engines", nargs="+", metavar="NAME", help=f"{', '.join(ENGINES)}, each also with {LOOP}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=machine.threads_available())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for one thread")
    parser.add_argument("--minutes", type=float, default=8, help="the whole run, from compiling to memory")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")


def run(options: argparse.Namespace) -> None:
    """Measure, write the JSON whenever there is more of it, print the tables. Raises ValueError for options that do not
    fit."""
    end = time.monotonic() + 60 * options.minutes
    check_machine(options)
    check_models(options.models, [*options.workloads, options.padding])
    names = check_names(options.engines or everything())
    facts = machine.facts(options.device, options.threads)
    kept = machine.keep_freed_memory()  # for every engine alike; peak memory is measured in other processes
    torch.set_num_threads(options.threads)
    setting = Setting(options.device, options.threads, options.clock, seed=random.randrange(2**31))
    for name in dict.fromkeys(name.removesuffix(LOOP) for name in names):
        with contextlib.suppress(BuildError):  # building the engine meets it again and notes it
            ENGINES[name].prepare(options.device)
    sources = {model: load_source(model) for model in options.models}
    shapes = {source.name: spec_of(source.config) for source in sources.values()}
    workloads = _workloads(options, sources)
    setting.ceilings.append(_ceilings(options.types, setting))
    by_type = [[Group(source, data_type, setting) for source in sources.values()] for data_type in options.types]
    groups = [group for of_type in by_type for group in of_type]
    peaks: list[dict[str, Any]] = []

    def save() -> Path:
        ceilings = reduce(Ceilings.merged, setting.ceilings)
        rows = [row for group in groups for row in group.rows]
        _add_floors(rows, ceilings, shapes, workloads)
        settings = {"minutes": options.minutes, "freed_memory_kept": kept, **_settings(setting)}
        absent = [entry for group in groups for entry in group.absent]
        found = {"settings": settings, "ceilings": asdict(ceilings), "rows": rows, "absent": absent, "memory": peaks}
        return results.save("encoder", {**facts, **found}, options.output)

    budget = Budget(end, [1.0] * len(by_type))
    for of_type in by_type:
        until = budget.next()
        latest = until + OVERRUN * (end - until)
        _measure(of_type, names, workloads, until, latest, options.memory, save)
        for group, model in zip(of_type, sources, strict=True):
            largest = max(workloads[group.source.name], key=lambda workload: workload.batch * workload.padded)
            peaks += _memory(group, model, largest, until) if options.memory else []
    setting.ceilings.append(_ceilings(options.types, setting))
    path = save()
    table.print_all(results.load(path))
    print(path)


def _workloads(options: argparse.Namespace, sources: dict[str, Source]) -> dict[str, list[Workload]]:
    """By the source's name."""
    distributions = options.lengths or ["rand_r" if options.device == "cuda" else "uniform"]
    return {
        source.name: choose_workloads(
            of_model(options.workloads, model), distributions, of_model([options.padding], model)
        )
        for model, source in sources.items()
    }


def check_machine(options: argparse.Namespace) -> None:
    """Raises ValueError for threads or a device that there cannot be, or that the clock cannot time."""
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads}: at least one thread is needed")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here")
    if options.clock == "cpu" and (options.threads, options.device) != (1, "cpu"):
        raise ValueError("--clock cpu adds up all threads' time: it takes --threads 1 and --device cpu")


def check_models(models: list[str], sizes: list[str]) -> None:
    """Raises ValueError for models of the same name, which results could not tell apart, and for a ``MODEL:BxS`` whose
    model is not measured."""
    names = [Path(model).name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"--models: two of {', '.join(models)} have the same name")
    for size in sizes:
        model = size.rpartition(":")[0]
        if model and model not in models:
            raise ValueError(f"{size}: {model!r} is not among --models {' '.join(models)}")


def of_model(sizes: list[str], model: str) -> list[str]:
    """The sizes that are for this model: those of all, and those that name it (``MODEL:BxS``)."""
    named = [size.rpartition(":") for size in sizes]
    return [size for name, _, size in named if name in ("", model)]


def choose_workloads(sizes: list[str], distributions: list[str], padding: list[str]) -> list[Workload]:
    """Each size with each distribution, and those also in ``padding`` with all that vary its share of padding.

    Raises ValueError where there is no size.
    """
    if not sizes:
        raise ValueError("every model needs a workload; name some with --workloads")
    wanted = [(size, distribution) for distribution in distributions for size in sizes]
    wanted += [(size, distribution) for size in padding for distribution in PADDING if size in sizes]
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


def _settings(setting: Setting) -> dict[str, Any]:
    """How it was timed, and what the machine gave meanwhile."""
    ceilings = setting.ceilings  # the first one has all types
    return {
        "clock": setting.clock, "interleaved": True, "seed": setting.seed,
        "statistic": "median, quartiles and all calls; ratios of the fastest",
        "others": round(setting.watch.others, 3),
        "copied_gb_per_s": [round(c.bytes / 1e9, 1) for c in ceilings],
        "multiplied_gop_per_s": {
            name: [round(c.operations[name] / 1e9) for c in ceilings if name in c.operations]
            for name in ceilings[0].operations
        },
    }  # fmt: skip


def _ceilings(types: list[str], setting: Setting) -> Ceilings:
    return measure(tuple(types), setting.device, setting.synchronize, CLOCKS[setting.clock])


def _measure(
    groups: list[Group],
    names: list[str],
    workloads: dict[str, list[Workload]],
    until: float,
    latest: float,
    with_memory: bool,
    save: Callable[[], object],
) -> None:
    """Build all models' engines in one type, check them on every workload of the model, time them, let them go: about
    until ``until``, which workloads that take long may exceed until ``latest``. Behind every visit ``save`` is called.

    Every workload is visited several times over the whole while: another guest of the host may slow whatever lives off
    memory for a minute, and some engines more than others.
    """
    for group in groups:
        print(f"{group.source.name} {group.data_type}: building", file=sys.stderr)
        group.build(names, until)
    needs: dict[tuple[Group, Workload], float] = {}
    for group in groups:
        for workload in workloads[group.source.name]:
            needs[group, workload] = group.prepare(workload, latest - sum(needs.values()))
    groups[0].setting.release_references()
    left = max(0.0, until - time.monotonic())
    building = sum(MEMORY_SECONDS + seconds for group in groups for seconds in group.building.values())
    left -= min(building, MEMORY_SHARE * left) if with_memory else 0.0
    # What the fewest rounds do not take, but some in any case: short calls cost little and want many rounds.
    spare = max(left - sum(needs.values()), SPARE_SHARE * left)
    shares = {key: share * spare for key, share in _shares(needs).items()}
    setting = groups[0].setting
    for visit in range(1, VISITS + 1):
        print(f"{groups[0].data_type}: visit {visit} of {VISITS}", file=sys.stderr)
        setting.ceilings.append(_ceilings([groups[0].data_type], setting))
        for (group, workload), seconds in shares.items():
            group.measure(workload, seconds * visit / VISITS, latest, least=-(-MIN_ROUNDS * visit // VISITS))
        save()
    for group in groups:
        group.close()
    gc.collect()
    torch.compiler.reset()


def _shares(needs: Mapping[Any, float]) -> dict[Any, float]:
    """Each workload's share of the spare time: as the root of what its rounds cost, and half of an equal one at least.

    With equally uncertain rounds the root makes the sum of the medians' variances least (Neyman's allocation with
    costs; Cochran, Sampling Techniques, 3rd edition, section 5.5). It leaves short calls so little time that a run may
    never meet them on an undisturbed machine.
    """
    roots = {key: math.sqrt(seconds) for key, seconds in needs.items()}
    least = sum(roots.values()) / (2 * len(roots) or 1)
    shares = {key: max(root, least) for key, root in roots.items()}
    total = sum(shares.values()) or 1.0
    return {key: share / total for key, share in shares.items()}


def _add_floors(
    rows: list[dict[str, Any]], ceilings: Ceilings, shapes: dict[str, Any], workloads: dict[str, list[Workload]]
) -> None:
    for row in rows:
        named = row["workload"], row["lengths"]
        workload = next(w for w in workloads[row["model"]] if (w.name, w.distribution) == named)
        row["floor_ms"] = ceilings.floor_ms(shapes[row["model"]], workload, row["data_type"])


def _memory(group: Group, model: str, size: Workload, until: float) -> list[dict[str, Any]]:
    """Peak memory of each engine that was timed, as far as the run's time allows."""
    measured = []
    for engine in [name for name in ENGINES if name in {row["engine"] for row in group.rows if "rounds" in row}]:
        entry = {"engine": engine, "model": group.source.name, "data_type": group.data_type, "workload": size.name}
        if time.monotonic() > until:
            break
        print(f"memory of {engine}, {group.source.name} {group.data_type}", file=sys.stderr)
        device, threads = group.setting.device, group.setting.threads
        try:
            peak = memory.peak_mib(engine, model, group.data_type, device, threads, size.name, size.distribution)
        except Exception as error:  # the times are worth keeping without it
            print(f"memory of {engine} is not known: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        measured.append({**entry, "peak_mib": round(peak, 1)})
    return measured
