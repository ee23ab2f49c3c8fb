"""One model in one type: its engines, each checked before it is timed, all timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.deviation import Deviation, deviation
from benchmarks.engines import ENGINES, LOOP, Engine, Loop
from benchmarks.models import Source, reference
from benchmarks.timing import CLOCKS, MIN_ROUNDS, Turns
from benchmarks.workloads import Batch, Workload, make_batch

QUANTISED = ("int8",)
"""Types without a plain PyTorch form to compare errors with."""
PLAIN = "ori"
"""The engine whose error the others' are compared with."""


_LATE = "the run's time was over"
SLACK = 1.2
"""Over the estimate, which is of the faster of the first calls."""


@dataclass(frozen=True)
class Setting:
    """What every measurement of a run shares."""

    device: str
    threads: int
    clock: str = "wall"
    watch: machine.Watch = field(default_factory=machine.Watch)
    copy_rates: list[float] = field(default_factory=list)
    """Bytes a second that memory gave at every visit: on a shared host it is not the machine's alone."""
    references: dict[tuple[str, Workload], Tensor] = field(default_factory=dict)
    """The float64 outputs seen so far, by model and workload: every type is compared with the same."""

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()


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
        self.engines: dict[str, Engine] = {}
        self.absent: list[dict[str, str]] = []
        """Engines that cannot run here, with the reason."""
        self.building: dict[str, float] = {}
        """Seconds that each engine took to build."""
        self._measured: dict[Workload, _Measured] = {}

    def build(self, names: list[str]) -> None:
        """Make the engines of these names; one that fails is noted with its reason and ends nothing."""
        built: dict[str, Engine] = {}
        for base in dict.fromkeys(name.removesuffix(LOOP) for name in names):
            start = time.monotonic()
            reason = ENGINES[base].absent(self.data_type, self.setting.device)
            if reason is None:
                try:
                    arguments = self.source, self.data_type, self.setting.device, self.setting.threads
                    built[base] = ENGINES[base](*arguments)
                except Exception as error:  # whatever a peer's converter raises
                    reason = first_line(error)
            if reason is not None:
                entry = {"engine": base, "model": self.source.name, "data_type": self.data_type}
                self.absent.append({**entry, "reason": reason})
            self.building[base] = time.monotonic() - start
        for name in names:
            base = name.removesuffix(LOOP)
            if base in built:
                self.engines[name] = Loop(built[base]) if name.endswith(LOOP) else built[base]

    def prepare(self, workload: Workload, limit: float) -> float:
        """Check the engines on a workload; returns the seconds to set aside for MIN_ROUNDS. Where these do not fit
        before ``limit`` (monotonic clock), the rows say so and it returns 0."""
        with self.setting.watch:
            measured = self._measured[workload] = self._begin(workload, limit)
        return SLACK * MIN_ROUNDS * measured.turns.seconds if measured.turns is not None else 0.0

    def measure(self, workload: Workload, seconds: float, limit: float, least: int = MIN_ROUNDS) -> None:
        """Time the engines on a workload that was prepared, until there are ``least`` rounds altogether and as many
        more as fit into ``seconds``; none that would end behind ``limit``."""
        turns = self._measured[workload].turns
        if turns is not None and turns.calls:
            with self.setting.watch:
                turns.run(least + int(seconds / turns.seconds), limit)

    def close(self) -> None:
        """Let the engines go; the rows stay."""
        self.engines.clear()
        for measured in self._measured.values():
            if measured.turns is not None:
                measured.turns.calls.clear()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each workload and engine."""
        return [row for workload, measured in self._measured.items() for row in self._rows(workload, measured)]

    def _begin(self, workload: Workload, limit: float) -> _Measured:
        names = [n for n in self.engines if workload.batch > 1 or not n.endswith(LOOP)]
        rows: dict[str, dict[str, Any]] = {name: {"engine": name, "refused": None} for name in names}
        if time.monotonic() >= limit:
            return _Measured(rows, None, _LATE)
        batch = make_batch(workload, self.source.config.vocab_size, self.setting.device)
        checked, calls = self._check({name: self.engines[name] for name in names}, batch)
        rows |= checked
        turns = Turns(calls, synchronize=self.setting.synchronize, clock=CLOCKS[self.setting.clock])
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
                found = timings[name]
                quartiles = {"lower_ms": found.lower, "upper_ms": found.upper}
                outcome: dict[str, Any] = {"median_ms": found.median, **quartiles, "fastest_ms": found.fastest}
                outcome |= {"rounds": found.rounds, "calls_ms": [round(1e3 * s, 4) for s in turns.taken[name]]}
            else:
                outcome = {"refused": row["refused"] or late}
            yield {"model": self.source.name, "data_type": self.data_type, **describe(workload), **row, **outcome}

    def _check(
        self, engines: dict[str, Engine], batch: Batch
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Callable[[], Any]]]:
        """A row for every engine, and the calls of those whose output is right."""
        expected = self._reference(batch)
        rows: dict[str, dict[str, Any]] = {}
        calls: dict[str, Callable[[], Any]] = {}
        found: dict[str, Deviation] = {}
        for name, engine in engines.items():
            try:
                calls[name] = engine.bind(batch)
                found[name] = deviation(engine.valid(calls[name](), batch), expected, batch.workload.lengths)
            except Exception as error:  # as in build()
                rows[name] = {"engine": name, "refused": first_line(error)}
        plain = None
        if self.data_type not in QUANTISED:
            plain = found[PLAIN].error if PLAIN in found else self._plain_error(batch, expected)
        for name, one in found.items():
            rows[name] = {
                "engine": name,
                "refused": one.refusal(self.data_type, plain),
                "plain_error": plain,
                **asdict(one),
            }
        return rows, {name: calls[name] for name in found if rows[name]["refused"] is None}

    def _reference(self, batch: Batch) -> Tensor:
        key = self.source.name, batch.workload
        if key not in self.setting.references:
            self.setting.references[key] = reference(self.source, batch, self.setting.device)
        return self.setting.references[key]

    def _plain_error(self, batch: Batch, expected: Tensor) -> float:
        setting = self.setting
        eager = ENGINES[PLAIN](self.source, self.data_type, setting.device, setting.threads)
        return deviation(eager.valid(eager.bind(batch)(), batch), expected, batch.workload.lengths).error


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
