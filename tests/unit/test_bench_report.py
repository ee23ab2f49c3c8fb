from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="make bench installs matplotlib")

from benchmarks import report
from benchmarks.encoder import choose_workloads

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
        "upper_ms": milliseconds, "rounds": 5, "floor_ms": 1.0, "floor_ratio": milliseconds,
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


def write(folder: Path, *found: dict[str, Any]) -> str:
    for index, result in enumerate(found):
        (folder / f"{index}.json").write_text(json.dumps(result))
    report.run(Namespace(results=folder, output=folder / "out"))
    return (folder / "out" / "index.html").read_text(encoding="utf-8")


def test_the_page_has_every_plot_it_refers_to_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    html = write(tmp_path, ENCODER, SERVING)
    files = re.findall(r'<img src="([^"]+)"', html)
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert "http" not in html
    assert "<script" not in html
    assert all(alt for alt in re.findall(r'alt="([^"]*)"', html))


def test_what_comes_from_results_is_escaped(tmp_path: Path) -> None:
    assert "&lt;Chip&gt; &amp; Co" in write(tmp_path, ENCODER)


def test_the_newest_result_of_a_device_wins(tmp_path: Path) -> None:
    older = {**ENCODER, "date": "2025-01-01T00:00:00+00:00", "commit": "old"}
    html = write(tmp_path, ENCODER, older)
    assert "commit abc" in html
    assert "commit old" not in html


def test_no_result_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run make bench"):
        report.run(Namespace(results=tmp_path, output=tmp_path / "out"))


def test_one_size_is_measured_with_every_share_of_padding() -> None:
    names = [(w.name, w.distribution) for w in choose_workloads(["1x32", "8x128"], ["uniform"], "8x128")]
    assert names == [
        ("1x32", "uniform"),
        ("8x128", "uniform"),
        ("8x128", "full"),
        ("8x128", "half"),
        ("8x128", "rand_r"),
    ]
    assert len(choose_workloads(["1x32"], ["uniform", "full"], "8x128")) == 1
