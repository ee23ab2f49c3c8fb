"""The scorer under other people's drivers: Ray Data on a local cluster, Spark in local mode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder.compile import ROOT
from tests.unit.bulk_fakes import read, small_archive, write
from tests.unit.handler_fakes import WORDS

ROWS = [{"id": i, "text": " ".join(WORDS[(i * 5 + j) % 15] for j in range(i % 11))} for i in range(2000)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("classifier"))


def python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


def test_two_ray_actors_give_the_same_rows(archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    source = write(tmp_path / "in.jsonl", ROWS)
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    python("-m", "handler.bulk", str(source), str(alone), "--archive", str(archive), "--quiet")
    arguments = ("--ray", "local", "--workers", "2", "--archive", str(archive))
    said = python("-m", "handler.bulk", str(source), str(together), *arguments)
    assert "2 Ray actors with 1 thread each" in said
    assert "Traceback" not in said
    rows = read(together)
    assert rows == read(alone)
    assert [row["id"] for row in rows] == list(range(2000))
    assert sum("error" in row for row in rows) == sum(not row["text"] for row in ROWS)


SPARK = """
import sys
from pyspark.sql import SparkSession
from handler.bulk import Scorer
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
frame = spark.read.json(sys.argv[1])
schema = "id long, text string, label string, score double, dropped_tokens long, error string"
scored = frame.select("id", "text").mapInPandas(Scorer(sys.argv[2], threads=1).frames, schema)
scored.coalesce(1).write.parquet(sys.argv[3])
spark.stop()
"""


def test_spark_maps_in_pandas(archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyspark", reason="pyspark is not installed; it is no dependency")
    source = write(tmp_path / "in.jsonl", ROWS)
    python("-c", SPARK, str(source), str(archive), str(tmp_path / "scored"))
    python("-m", "handler.bulk", str(source), str(tmp_path / "own.parquet"), "--archive", str(archive), "--quiet")
    import pyarrow.parquet as pq

    rows = sorted(pq.read_table(tmp_path / "scored").to_pylist(), key=lambda row: row["id"])
    own = read(tmp_path / "own.parquet")
    assert [row["label"] for row in rows] == [row["label"] for row in own]
    assert [row["score"] for row in rows if row["score"] is not None] == pytest.approx(
        [row["score"] for row in own if row["score"] is not None], rel=1e-6
    )
    assert [row["error"] is None for row in rows] == [row["error"] is None for row in own]
