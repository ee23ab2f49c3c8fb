from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="make bench installs matplotlib")

from benchmarks import figures, ratios, results, summary, table
from benchmarks.encoder import choose_workloads, of_model

FACTS = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc",
    "modified": False,
    "device": {"kind": "cpu", "processor": "<Chip> & Co", "threads": 2, "load_average": 0.1},
    "versions": {"torch": "2.13.0"},
}


def encoder_row(engine: str, workload: str, lengths: str, share: float, milliseconds: float) -> dict[str, Any]:
    return {
        "model": "base", "data_type": "fp32", "workload": workload, "lengths": lengths, "padding_share": share,
        "tokens": 10, "engine": engine, "refused": None, "median_ms": milliseconds, "lower_ms": milliseconds,
        "upper_ms": milliseconds, "rounds": 5, "floor_ms": 1.0,
    }  # fmt: skip


ROWS = [
    encoder_row(engine, size, lengths, share, factor * (1 + share))
    for engine, factor in (("ths", 4.0), ("thsext", 2.0))
    for size, lengths, share in (("1x128", "uniform", 0.0), ("8x128", "full", 0.0), ("8x128", "uniform", 0.4))
]
ENCODER = {"kind": "encoder", **FACTS, "rows": ROWS, "absent": [], "memory": []}
SERVING = {
    "kind": "serving", **FACTS, "settings": {"data": "tickets.tsv", "data_type": "fp32"}, "engine_rate": {"ths": 90.0},
    "rows": [
        {"server": "ths", "offered": rate, "achieved": 0.9 * rate, "failed": 0, "p50": 1.0, "p95": 2.0, "p99": 3.0,
         "requests": 9, "stages_ms": {"run": 1.0}, "engine_share": 0.1}
        for rate in (10.0, 20.0)
    ],
}  # fmt: skip


def kept(folder: Path, *found: dict[str, Any]) -> Path:
    """A folder with these results."""
    for index, result in enumerate(found):
        (folder / f"{index}.json").write_text(json.dumps(result))
    return folder


def drawn(folder: Path) -> list[str]:
    """The names of the figures drawn from a folder's results."""
    figures.run(Namespace(results=folder, output=folder / "figures"))
    paths = sorted((folder / "figures").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    return [path.name for path in paths]


def test_the_readme_figures_come_from_the_newest_run_that_has_them(tmp_path: Path) -> None:
    partial = {**ENCODER, "date": "2030-01-01T00:00:00+00:00", "rows": ROWS[:1] + ROWS[3:4]}
    assert [result["date"] for result in (partial, ENCODER)] == [
        result["date"] for result in results.newest("encoder", kept(tmp_path, ENCODER, SERVING, partial))
    ]
    assert drawn(tmp_path) == ["encoder-latency.png", "encoder-padding.png"]


def test_the_chart_has_others_in_one_type_and_ours_in_narrower_ones_the_slowest_first(tmp_path: Path) -> None:
    def row(engine: str, data_type: str, milliseconds: float, **more: Any) -> dict[str, Any]:
        made = encoder_row(engine, "8x128", "uniform", 0.4, milliseconds)
        return {**made, "data_type": data_type, **more}

    rows = [
        row("thsext", "bf16", 1.0), row("thsext", "fp32", 2.0), row("ths", "fp32", 4.0), row("ths", "bf16", 0.5),
        row("openvino", "fp32", 0.1, refused="wrong"), row("openvino+loop", "fp32", 0.2),
    ]  # fmt: skip
    cpu = {**ENCODER, "rows": rows}
    shown = figures.bars([cpu], "8x128", "fp32")
    assert [(label, ours) for label, _, ours in shown] == [
        ("TorchScript, fp32", False), ("EFFT, fp32", True), ("EFFT, bf16", True),
    ]  # fmt: skip
    gpu_rows = [{**row("thsext", "fp16", 2.0), "workload": "32x384"}]
    gpu = {**ENCODER, "device": {**FACTS["device"], "kind": "cuda", "gpu": "NVIDIA H200"}, "rows": gpu_rows}
    assert drawn(kept(tmp_path, cpu, gpu)) == ["beside.png"]


def test_a_type_without_the_baseline_has_no_padding_plot(tmp_path: Path) -> None:
    rows = [{**row, "data_type": "int8"} for row in ROWS if row["engine"] == "thsext"]
    assert drawn(kept(tmp_path, {**ENCODER, "rows": rows})) == []


def test_ours_is_compared_with_the_best_of_the_others() -> None:
    rows = [
        encoder_row("ths", "1x128", "uniform", 0.0, 4.0),
        encoder_row("packed", "1x128", "uniform", 0.0, 2.5),
        encoder_row("thsext", "1x128", "uniform", 0.0, 2.0),
        {**encoder_row("openvino", "1x128", "uniform", 0.0, 1.0), "refused": "wrong"},
    ]
    del rows[3]["median_ms"]
    (found,) = summary.against_best({**ENCODER, "rows": rows})
    assert [line[1] for line in found.lines] == ["1", "2.5 packed", "2", "0.80", "2.00"]
    with pytest.raises(ValueError, match="kind serving"):
        summary.against_best(SERVING)


def test_ratios_are_of_the_fastest_calls_where_there_are_enough() -> None:
    row = encoder_row("ths", "1x128", "uniform", 0.0, 50.0)
    busy = {**row, "calls_ms": [9.0] * 8 + [1.0, 2.0, 3.0]}
    assert ratios.fastest_mean_ms({**row, "calls_ms": [float(c) for c in range(40, 0, -1)]}) == 2.5
    assert ratios.fastest_mean_ms(busy) == ratios.over_floor(busy) == 2.0
    for few in (row, {**row, "calls_ms": busy["calls_ms"][-9:]}):
        assert ratios.fastest_mean_ms(few) is None
        assert ratios.over_floor(few) == 50.0
        assert ratios.over(few, busy) == 1.0  # both medians
    assert ratios.over(row, None) is ratios.over(row, {"engine": "packed", "refused": "wrong"}) is None
    packed = {**encoder_row("packed", "1x128", "uniform", 0.0, 4.0), "calls_ms": [4.0] * 11}
    rows = [{**row, "calls_ms": [50.0] * 11}, packed, {**busy, "engine": "thsext"}]
    (found,) = summary.against_best({**ENCODER, "rows": rows})
    assert [line[1] for line in found.lines] == ["1", "4 packed", "50", "0.50", "2.00"]
    assert found.title.endswith(ratios.BASIS)
    (grid,) = table.of({**ENCODER, "rows": rows})
    assert [line[1].replace(" ±0 %", "") for line in grid.lines] == [
        "1", "50 / 50.00 / 1.00x", "4 / 4.00 / 12.50x", "50 / 2.00 / 25.00x", "5 rounds",
    ]  # fmt: skip
    (grid,) = table.of({**ENCODER, "rows": [*rows, encoder_row("ths", "8x128", "full", 0.0, 4.0)]})
    assert grid.title.endswith(f"{ratios.BASIS}, medians where they are few")
    (grid,) = table.of(ENCODER | {"rows": ROWS})
    assert grid.title.endswith("ratios: medians")


def test_memory_that_was_not_measured_is_named() -> None:
    memory = [{"engine": "ths", "model": "base", "data_type": "fp32", "workload": "8x128", "peak_mib": 500.0}]
    rows = [*ROWS, encoder_row("ths+loop", "8x128", "full", 0.0, 4.0)]
    found = table.of({**ENCODER, "rows": rows, "memory": memory})[-1]
    assert found.notes == ["not measured within the run's time: thsext base fp32"]


def test_no_result_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run make bench"):
        drawn(tmp_path)


def test_one_size_is_measured_with_every_share_of_padding() -> None:
    names = [(w.name, w.distribution) for w in choose_workloads(["1x32", "8x128"], ["uniform"], ["8x128"])]
    assert names == [
        ("1x32", "uniform"),
        ("8x128", "uniform"),
        ("8x128", "full"),
        ("8x128", "half"),
        ("8x128", "rand_r"),
    ]
    assert len(choose_workloads(["1x32"], ["uniform", "full"], ["8x128"])) == 1


def test_a_size_may_be_for_one_model_only() -> None:
    sizes = ["1x32", "some/folder:32x128", "base:8x128"]
    assert [of_model(sizes, model) for model in ("base", "some/folder", "minilm")] == [
        ["1x32", "8x128"],
        ["1x32", "32x128"],
        ["1x32"],
    ]
    with pytest.raises(ValueError, match="every model needs a workload"):
        choose_workloads(of_model(["base:1x32"], "minilm"), ["uniform"], [])
