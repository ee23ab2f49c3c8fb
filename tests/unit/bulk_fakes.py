"""Bulk runs in the test's own process, around fakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch

from handler.bulk import command
from handler.bulk.scorer import Scorer
from handler.bulk.work import Done, Job, Work
from handler.engine import Engine
from tests.unit.handler_fakes import PooledLogits, save_archive
from tests.unit.test_handler_engine import pack

ENGINES: dict[str, Engine] = {}


def small_archive(folder: Path) -> Path:
    """A packed classifier of three labels; a window has 256 rows."""
    config = {"max_batch_tokens": 32, "stride": 4}
    save_archive(folder / "files", PooledLogits(3), "sequence_classification", config, labels=["red", "green", "blue"])
    return pack(folder / "files", folder / "small.mar")


class InlinePool:
    """Stands for handler.bulk.pool.Pool, whose processes take seconds to start."""

    threads = 1
    on_gpu = False

    def __init__(self, folder: Path, job: Job, plan: Any) -> None:
        self._folder = folder
        self._job = job

    def __enter__(self) -> InlinePool:
        key = str(self._folder)
        if key not in ENGINES:
            ENGINES[key] = Engine.open(self._folder, threads=torch.get_num_threads())
        scorer = Scorer.around(ENGINES[key], self._job.columns, self._job.options, self._job.prefix)
        self._work = Work(self._job, scorer)
        self.schema = self._work.schema
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, windows: Any) -> Iterator[Done]:
        for start, batch in windows():
            yield self._work(start, batch)


def bulk(source: Path, target: Path, archive: Path, *arguments: str) -> int:
    """The command, in this process and quietly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "Pool", InlinePool)
        patch.setattr("signal.signal", lambda *_: None)
        return command.main([str(source), str(target), "--archive", str(archive), "--quiet", *arguments])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".csv":
        csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist(maps_as_pydicts="strict")
    if path.suffix == ".csv":
        return csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True)).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]
