"""One model in one type: its engines, each checked before it is timed, all timed in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.deviation import Deviation, deviation
from benchmarks.engines import ENGINES, LOOP, Engine, Loop
from benchmarks.floor import Ceilings
from benchmarks.models import Reference, Source
from benchmarks.timing import CLOCKS, MIN_ROUNDS, STREAM, Turns
from benchmarks.workloads import Batch, Workload, make_batch

QUANTISED = ("int8", "fp8")
"""Types without a plain PyTorch form to compare errors with."""
PLAIN = "ori"
"""The engine whose error the others' are compared with."""
SETTLING = {"cpu": 0, "cuda": 3}
"""By device, the calls before the one that is checked. On a GPU an engine's first calls profile, compile or capture,
and the code that is timed runs only behind them."""

_LATE = "the run's time was over"
SLACK = 1.2
"""Over the estimate, which is of the faster of the first calls."""


@dataclass(frozen=True)
class Setting:
    """What every measurement of a run shares."""

    device: str
    threads: int
    clock: str = "wall"
    seed: int = 0
    """Of the engines' order in every round."""
    watch: machine.Watch = field(default_factory=machine.Watch)
    ceilings: list[Ceilings] = field(default_factory=list)
    """What the machine gave at every visit: a shared host does not give the same from one minute to the next."""
    references: dict[str, Reference] = field(default_factory=dict)
    """By model."""
    plain_errors: dict[tuple[str, str, Workload], float] = field(default_factory=dict)
    """Plain PyTorch's errors seen so far, by model, type and workload."""

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def reference(self, source: Source) -> Reference:
        """The model's float64 outputs."""
        return self.references.setdefault(source.name, Reference(source, self.device))

    def turns(self, calls: Mapping[str, Callable[[], Any]], what: str) -> Turns:
        """Of calls on this device; ``what`` is measured decides their order."""
        stream = STREAM if self.device == "cuda" else 0.0
        clock, seed = CLOCKS[self.clock], f"{self.seed} {what}"
        return Turns(calls, synchronize=self.synchronize, clock=clock, seed=seed, stream=stream)

    def release_references(self) -> None:
        """Let the float64 weights go; the outputs stay."""
        for reference in self.references.values():
            reference.release()


@dataclass
class _Measured:
    """What is known of the engines on one workload."""

    rows: dict[str, dict[str, Any]]
    """By engine: whether its output was right."""
    turns: Turns | None
    late: str = ""
    """Why there are no turns."""


class Group:
    """A model in one type with all engines that can run it."""

    def __init__(self, source: Source, data_type: str, setting: Setting) -> None:
        self.source, self.data_type, self.setting = source, data_type, setting
        self.stored = data_type
        """The type that the engines are made in."""
        self.engines: dict[str, Engine] = {}
        self.absent: list[dict[str, str]] = []
        """Engines that cannot run here, with the reason."""
        self.building: dict[str, float] = {}
        """Seconds that each engine took to build."""
        self._eager: Engine | None = None
        """The engine PLAIN, where it is not among the others but its error is asked for."""
        self._measured: dict[Workload, _Measured] = {}

    def build(self, names: list[str], limit: float = math.inf) -> None:
        """Make the engines of these names; one that fails is noted with its reason and ends nothing. None is begun
        behind ``limit`` (monotonic clock)."""
        built: dict[str, Engine] = {}
        for base in dict.fromkeys(name.removesuffix(LOOP) for name in names):
            start = time.monotonic()
            reason = ENGINES[base].absent(self.stored, self.setting.device)
            if reason is None and start >= limit:
                reason = _LATE
            if reason is None:
                try:
                    built[base] = self._made(base)
                except Exception as error:  # whatever a peer's converter raises
                    reason = first_line(error)
            if reason is not None:
                entry = {"engine": base, "model": self.source.name, "data_type": self.stored}
                self.absent.append({**entry, "reason": reason})
            self.building[base] = time.monotonic() - start
        for name in names:
            base = name.removesuffix(LOOP)
            if base in built:
                self.engines[name] = Loop(built[base]) if name.endswith(LOOP) else built[base]

    def prepare(self, workload: Workload, limit: float, names: Iterable[str] | None = None) -> float:
        """Check the engines, or those of these names, on a workload; returns the seconds to set aside for MIN_ROUNDS.
        Where these do not fit before ``limit`` (monotonic clock), the rows say so and it returns 0."""
        if names is None:
            names = [name for name in self.engines if workload.batch > 1 or not name.endswith(LOOP)]
        with self.setting.watch:
            measured = self._measured[workload] = self._begin(workload, limit, list(names))
        return SLACK * MIN_ROUNDS * measured.turns.seconds if measured.turns is not None else 0.0

    def measure(self, workload: Workload, seconds: float, limit: float, least: int = MIN_ROUNDS) -> None:
        """Time the engines on a workload that was prepared, until there are ``least`` rounds altogether and as many
        more as fit into ``seconds``; none that would end behind ``limit``."""
        turns = self._measured[workload].turns
        if turns is not None and turns.calls:
            with self.setting.watch:
                turns.run(least + int(seconds / turns.seconds), limit)

    def under(self, data_type: str) -> Group:
        """The same engines in another arithmetic, which is set from outside, such as tf32."""
        other = Group(self.source, data_type, self.setting)
        other.stored, other.engines, other.absent = self.stored, self.engines, self.absent
        return other

    def keep(self, names: Iterable[str]) -> None:
        """Let the engines go but those of these names."""
        for name in self.engines.keys() - set(names):
            del self.engines[name]
        self._eager = None

    def close(self) -> None:
        """Let the engines go; the rows stay."""
        self.keep(())
        for workload in self._measured:
            self.finish(workload)

    def finish(self, workload: Workload) -> None:
        """Let what was bound to a workload go; its rows stay."""
        turns = self._measured[workload].turns
        if turns is not None:
            turns.calls.clear()

    def rows_of(self, workload: Workload) -> list[dict[str, Any]]:
        """A row for each engine on a workload that was prepared."""
        return list(self._rows(workload, self._measured[workload]))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each workload and engine."""
        return [row for workload, measured in self._measured.items() for row in self._rows(workload, measured)]

    def _begin(self, workload: Workload, limit: float, names: list[str]) -> _Measured:
        rows: dict[str, dict[str, Any]] = {name: {"engine": name, "refused": None} for name in names}
        if time.monotonic() >= limit:
            return _Measured(rows, None, _LATE)
        batch = make_batch(workload, self.source.config.vocab_size, self.setting.device)
        checked, calls = self.check(batch, names)
        rows |= checked
        what = f"{self.source.name} {self.data_type} {workload.name} {workload.distribution}"
        turns = self.setting.turns(calls, what)
        if time.monotonic() + SLACK * MIN_ROUNDS * turns.seconds > limit:
            return _Measured(rows, None, f"{MIN_ROUNDS} rounds would take longer than was left of the run's time")
        return _Measured(rows, turns)

    def _rows(self, workload: Workload, measured: _Measured) -> Iterator[dict[str, Any]]:
        turns = measured.turns
        rounds = turns.rounds if turns is not None else 0
        timings = turns.timings() if turns is not None and rounds >= MIN_ROUNDS else {}
        late = f"only {rounds} of {MIN_ROUNDS} rounds fitted into the run's time" if rounds else measured.late or _LATE
        for name, row in measured.rows.items():
            if turns is not None and name in timings:
                outcome: dict[str, Any] = timings[name].figures()
                if not turns.stream:  # there they are many, and alike
                    outcome["calls_ms"] = [round(1e3 * s, 4) for s in turns.taken[name]]
            else:
                outcome = {"refused": row["refused"] or late}
            yield {"model": self.source.name, "data_type": self.data_type, **describe(workload), **row, **outcome}

    def check(
        self, batch: Batch, names: Iterable[str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Callable[[], Any]]]:
        """A row for each of these engines on a batch, and the bound calls of those whose output is right.

        A row says why its engine is ``refused`` (None where it is not) and, where it returned anything, how far that is
        from float64.
        """
        rows: dict[str, dict[str, Any]] = {name: {"engine": name, "refused": None} for name in names}
        calls: dict[str, Callable[[], Any]] = {}
        found: dict[str, Deviation] = {}
        # The engines before the reference: what they compile and capture should not depend on what ran before.
        outputs: dict[str, Tensor] = {}
        for name, row in rows.items():
            try:
                calls[name], outputs[name] = self._call(self.engines[name], batch)
            except Exception as error:  # as in build()
                row["refused"] = first_line(error)
        for name, output in outputs.items():
            try:
                found[name] = self._deviation(output, batch)
            except ValueError as error:  # of another shape
                rows[name]["refused"] = first_line(error)
        plain = self._plain_error(batch, found.get(PLAIN)) if found and self.data_type not in QUANTISED else None
        for name, one in found.items():
            rows[name] |= {"refused": one.refusal(self.data_type, plain), "plain_error": plain, **asdict(one)}
        return rows, {name: calls[name] for name in found if rows[name]["refused"] is None}

    def _made(self, name: str) -> Engine:
        return ENGINES[name](self.source, self.stored, self.setting.device, self.setting.threads)

    def _call(self, engine: Engine, batch: Batch) -> tuple[Callable[[], Any], Tensor]:
        """The engine's bound call and what it returns once it has settled."""
        call = engine.bind(batch)
        for _ in range(SETTLING[self.setting.device]):
            call()
        return call, engine.valid(call(), batch)

    def _deviation(self, output: Tensor, batch: Batch) -> Deviation:
        return deviation(output, self.setting.reference(self.source)(batch), batch.workload.lengths)

    def _plain_error(self, batch: Batch, found: Deviation | None) -> float:
        """That of the engine PLAIN; ``found`` is its deviation where it was among the engines."""
        known = self.setting.plain_errors
        key = self.source.name, self.data_type, batch.workload
        if found is not None:
            known[key] = found.error
        if key not in known:
            if self._eager is None:
                self._eager = self._made(PLAIN)
            known[key] = self._deviation(self._call(self._eager, batch)[1], batch).error
        return known[key]


def describe(workload: Workload) -> dict[str, Any]:
    """A workload as a result row carries it."""
    return {
        "workload": workload.name,
        "lengths": workload.distribution,
        "tokens": workload.tokens,
        "padding_share": round(workload.padding_share, 4),
    }


def first_line(error: Exception) -> str:
    """An exception as one line of at most 200 characters."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:200]
