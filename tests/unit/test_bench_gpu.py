"""What ``gpu_check`` does with outputs, on the CPU: the device's clock is a fake."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_check, measuring
from benchmarks.engines import ENGINES
from benchmarks.floor import Ceilings
from benchmarks.gpu import encoders
from benchmarks.gpu.engines import Engines
from benchmarks.gpu_check import Check
from benchmarks.models import SIZES, Source
from benchmarks.ratios import over_floor
from benchmarks.timing import Timing
from benchmarks.workloads import Batch, make_workload

TINY = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 112}
WORKLOADS = ("1x8", "4x16")
RATES = Ceilings(dict.fromkeys(("fp32", "tf32", "bf16", "fp16"), 100000000000.0), 1e10)
Eager: Any = ENGINES["ori"]


def one_millisecond(calls: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    """Every call once, as long as the other."""
    for call in calls.values():
        call()
    return {name: Timing.of([1e-3] * 3) for name in calls}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("base", "large"):
        monkeypatch.setitem(SIZES, model, TINY)
    monkeypatch.setattr(encoders, "interleave", one_millisecond)
    monkeypatch.setattr(encoders, "once", lambda call, _: float(len(call())))
    monkeypatch.setattr(encoders, "LARGE", ("1x8",))
    monkeypatch.setattr(gpu_check, "WORKLOADS", WORKLOADS)
    monkeypatch.setattr(Check, "rates", lambda self, data_type: RATES)


def replace(monkeypatch: pytest.MonkeyPatch, name: str, **methods: Any) -> None:
    """An engine of this name that is transformers' own but for some methods."""
    monkeypatch.setitem(ENGINES, name, type("Fake", (Eager,), methods))


def twice(self: Any, output: Tensor, batch: Batch) -> Tensor:
    return 2 * Eager.valid(self, output, batch)


def test_every_output_is_checked_and_every_right_one_timed() -> None:
    rows = encoders.measure(Engines("cpu"), "base", "fp32", WORKLOADS, ["packed", "ths", "ori"], RATES)
    assert [(row["workload"], row["engine"]) for row in rows] == [
        (size, engine) for size in WORKLOADS for engine in ("thsext", "packed", "ths", "ori")
    ]
    for row in rows:
        assert row["refused"] is None
        assert 0 < row["error"] <= max(2 * row["plain_error"], 2**-21)
        assert row["median_ms"] > 0
        assert row["rounds"] == encoders.ROUNDS
        assert over_floor(row) == pytest.approx(row["median_ms"] / row["floor_ms"])
        assert row["lengths"] == "rand_r"
    assert rows[4]["tokens"] == sum(make_workload("4x16", "rand_r").lengths)


def test_a_wrong_peer_has_a_row_without_a_time_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, "thsext")
    replace(monkeypatch, "packed", valid=twice)
    check = Check(["packed"], "cpu", {})
    check.measure("base", "fp32", ["1x8"], check.peers, RATES)
    ours, peer = check.rows
    assert ours["refused"] is None
    assert ours["median_ms"] > 0
    assert "against float64, allowed" in peer["refused"]
    assert "median_ms" not in peer
    assert peer["floor_ms"] == ours["floor_ms"]
    assert check.checks == {"outputs": True}


def test_ours_wrong_fails_the_check_and_is_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(monkeypatch, "thsext", valid=twice)
    assert gpu_check.run(Check([], "cpu", {"library": "none"}), ["encoders"], tmp_path) == 1
    (path,) = tmp_path.glob("encoder-cpu-*.json")
    result = json.loads(path.read_text())
    assert result["checks"] == {"outputs": False}
    assert result["library"] == "none"
    assert [row["engine"] for row in result["rows"]] == ["thsext"] * 3
    assert not any("median_ms" in row for row in result["rows"])
    said = capsys.readouterr().out
    assert "not right: base fp16 4x16: error 1.0e+00 against float64" in said
    assert "gpu-check: failed: outputs" in said


def test_ours_missing_fails_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(self: Any, *_: Any) -> None:
        raise RuntimeError("no such kernel")

    replace(monkeypatch, "thsext", __init__=broken)
    check = Check(["ths"], "cpu", {})
    assert gpu_check.run(check, ["encoders", "stream"], tmp_path) == 1
    assert check.checks == {"outputs": False}
    assert {row["engine"] for row in check.rows} == {"ths"}
    assert check.engines.failures[0] == "base fp16 1x8: RuntimeError: no such kernel"
    assert [entry["engine"] for entry in check.result()["absent"]] == ["thsext", "thsext"]
    assert "stream" not in check.more


def test_all_stages_of_encoders_pass_when_ours_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(encoders, "STREAM", "12x64")
    monkeypatch.setattr(encoders, "stream_workloads", lambda _, cut=encoders.stream_workloads: cut(200))
    made: list[tuple[str, torch.dtype]] = []
    as_type = Source.as_type
    monkeypatch.setattr(
        Source, "as_type", lambda self, dtype, *a: made.append((self.name, dtype)) or as_type(self, dtype, *a)
    )
    check = Check(["ths"], "cpu", {})
    assert gpu_check.run(check, ["encoders", "types", "stream"], tmp_path) == 0
    timed = {
        (row["model"], row["data_type"], row["workload"], row["engine"]) for row in check.rows if "median_ms" in row
    }
    base = {("base", data_type, size) for data_type in ("fp16", "bf16", "fp32", "tf32") for size in WORKLOADS}
    assert timed >= {(*case, "thsext") for case in (*base, ("large", "fp16", "1x8"))}
    assert check.more["bf16_over_fp16"] == {"1x8": 1, "4x16": 1}
    batches = encoders.stream_workloads(200)
    assert check.more["stream"] == {"seconds": len(batches), "sequences_per_second": 12 / len(batches)}
    # All types are compared with the same float64 outputs; the stream has other workloads than the encoders.
    assert [name for name, dtype in made if dtype == torch.float64] == ["base", "large", "large"]


def test_a_stage_that_ends_early_is_a_failure_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost(_: Check) -> None:
        raise RuntimeError("the device is lost")

    def fine(check: Check) -> None:
        check.checks["tests"] = True

    monkeypatch.setattr(gpu_check, "_STAGES", {"encoders": lost, "tests": fine})
    check = Check([], "cpu", {})
    assert gpu_check.run(check, ["tests", "encoders"], tmp_path) == 1
    assert check.checks == {"encoders": "RuntimeError: the device is lost", "tests": True}


def test_tf32_is_allowed_while_every_engine_runs_and_not_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bool]] = {}

    def noted(name: str) -> Any:
        def bind(self: Any, batch: Batch) -> Any:
            call = Eager.bind(self, batch)

            def run() -> Any:
                seen.setdefault(name, set()).add(torch.backends.cuda.matmul.allow_tf32)
                return call()

            return run

        return bind

    for name in ("thsext", "ori"):
        replace(monkeypatch, name, bind=noted(name))
    for data_type, allowed in (("fp32", False), ("tf32", True)):
        seen.clear()
        encoders.measure(engines := Engines("cpu"), "base", data_type, ["1x8"], [], RATES)
        assert seen == {"thsext": {allowed}, "ori": {allowed}}
        assert not torch.backends.cuda.matmul.allow_tf32
        assert [key[1] for key in engines.setting.plain_errors] == [data_type]


@pytest.mark.parametrize(("wrong", "refused"), [((1, 2, 3), False), ((4, 5), True)])
def test_a_settled_call_is_checked(monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, ...], refused: bool) -> None:
    """As on a GPU, where three calls come before."""
    monkeypatch.setitem(measuring.SETTLING, "cpu", measuring.SETTLING["cuda"])

    def bind(self: Any, batch: Batch) -> Any:
        call, calls = Eager.bind(self, batch), 0

        def run() -> Any:
            nonlocal calls
            calls += 1
            return call() * (2 if calls in wrong else 1)

        return run

    replace(monkeypatch, "thsext", bind=bind)
    engines = Engines("cpu")
    (row,) = encoders.measure(engines, "base", "fp32", ["1x8"], [], RATES)
    assert bool(row["refused"]) is refused
    assert bool(engines.failures) is refused


def test_only_our_engines_stay_for_later_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("thsext", "ths"):
        replace(monkeypatch, name)
    engines = Engines("cpu")
    group = engines.group("base", "fp32", ["thsext", "ths"])
    ours = group.engines["thsext"]
    engines.release()
    assert engines.group("base", "tf32", ["thsext"]).engines == {"thsext": ours}


def test_what_is_compiled_comes_first() -> None:
    assert set(encoders.COMPILED) < set(encoders.WORKLOADS)
    ordered = encoders.in_order(encoders.WORKLOADS, ["ths", "compile"])
    assert tuple(ordered[:3]) == encoders.COMPILED
    assert sorted(ordered) == sorted(encoders.WORKLOADS)
    assert encoders.in_order(encoders.WORKLOADS, ["ths"]) == list(encoders.WORKLOADS)


def test_torch_compile_is_measured_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("thsext", "compile"):
        replace(monkeypatch, name)
    monkeypatch.setattr(encoders, "COMPILED", ("4x16",))
    rows = encoders.measure(Engines("cpu"), "base", "fp32", WORKLOADS, ["compile"], RATES)
    assert [(row["workload"], row["engine"]) for row in rows] == [
        ("1x8", "thsext"),
        ("4x16", "thsext"),
        ("4x16", "compile"),
    ]


def test_the_stream_has_every_sequence_once() -> None:
    batches = encoders.stream_workloads(16384)
    lengths = [length for batch in batches for length in batch.lengths]
    assert lengths == sorted(make_workload(encoders.STREAM, "squad").lengths)
    assert all(batch.tokens <= 16384 for batch in batches)
    assert all(batch.padded == max(batch.lengths) for batch in batches)
    assert sum(lengths) / len(lengths) == pytest.approx(178, abs=2)
