"""Runs as a whole: killed ones go on, dying workers cost no row, and whatever is wrong is said in one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handler.bulk import pool as pools
from handler.bulk.command import make_parser
from handler.bulk.plan import Plan, make_plan
from handler.bulk.pool import Pool
from handler.bulk.scorer import Scorer
from handler.bulk.sources import open_source, windows
from handler.bulk.work import Job, Work
from handler.engine import Engine
from tests.unit.bulk_fakes import bulk, read, small_archive, write
from tests.unit.handler_fakes import WORDS

ROOT = Path(__file__).resolve().parents[2]
ROWS = 20_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("classifier"))


def start(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "handler.bulk", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )


def parts(out: Path) -> list[str]:
    return sorted(file.name for file in out.with_name(out.name + ".partial").glob("part-*") if file.suffix != ".tmp")


def workers(pid: int) -> list[psutil.Process]:
    """Without the process in which multiprocessing keeps count of what it shares."""
    found = [child for child in psutil.Process(pid).children() if "resource_tracker" not in " ".join(child.cmdline())]
    assert found
    return found


def blocks_interrupts(process: psutil.Process) -> bool:
    """Whether its first thread does, see proc(5)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    blocked = int(re.search(r"^SigBlk:\t(\w+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return bool(blocked >> (signal.SIGINT - 1) & 1)


def test_a_run_that_is_killed_twice_has_every_row_once(archive: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    texts = [" ".join(WORDS[(i * 7 + j * j) % 15] for j in range(3 + i % 10)) for i in range(ROWS)]
    source.write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)))
    arguments = (source, out, "--archive", archive, "--workers", 2, "--save-every", 0.001)
    seen: list[str] = []
    for _ in range(2):
        running = start(*arguments)
        while len(parts(out)) <= len(seen):
            assert running.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        running.kill()
        running.wait()
        assert seen == parts(out)[: len(seen)], "what was done is kept"
        seen = parts(out)
        assert not out.exists()
    running = start(*arguments)
    _, said = running.communicate()
    assert running.returncode == 0, said
    assert f"from row {int(seen[-1][18:30]):,} on" in said
    rows = read(out)
    assert [int(row["id"]) for row in rows] == list(range(ROWS))
    assert [row["text"] for row in rows] == texts
    engine = Engine.open(archive, threads=1)
    columns = engine.columns(texts[::97])
    assert [row["label"] for row in rows[::97]] == columns["label"].tolist()
    assert [row["score"] for row in rows[::97]] == pytest.approx(columns["score"].tolist(), rel=1e-6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.csv", "out.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_says_so_and_keeps_what_is_done(
    number: signal.Signals, archive: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    write(source, [{"text": f"the cat {i}"} for i in range(ROWS)])
    running = start(source, out, "--archive", archive, "--workers", 1, "--save-every", 0.001)
    while not parts(out):
        assert running.poll() is None
        time.sleep(0.005)
    assert all(blocks_interrupts(worker) for worker in workers(running.pid))
    os.killpg(running.pid, number)  # to all of its processes, as a terminal does
    _, said = running.communicate()
    assert running.returncode == 130
    assert said.rstrip().endswith("the same command goes on from here")
    assert "Traceback" not in said
    assert parts(out)
    assert not list(out.with_name("out.parquet.partial").glob("*.tmp"))


class _Deadly(Work):
    """A worker that the text "poison" kills."""

    def __call__(self, start: int, batch: pa.RecordBatch) -> Any:
        if "poison" in batch.column("text").to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(start, batch)


class _Scorer:
    """Needs no model."""

    engine = SimpleNamespace(lost=False)

    schema = pa.schema([("length", pa.int64()), ("error", pa.string())])

    def score(self, rows: list[Any]) -> pa.RecordBatch:
        good = [isinstance(row, dict) for row in rows]
        lengths = [len(row["text"]) if fine else None for row, fine in zip(rows, good, strict=True)]
        errors = [None if fine else row.message for row, fine in zip(rows, good, strict=True)]
        return pa.record_batch([pa.array(lengths, pa.int64()), pa.array(errors, pa.string())], schema=self.schema)


def deadly_pool(monkeypatch: pytest.MonkeyPatch, texts: list[str], workers: int) -> list[Any]:
    job = Job("parquet", "jsonl", {"text": "text"}, pa.schema([("text", pa.string())]))
    monkeypatch.setattr(pools, "_load", lambda _, job, *__: _Deadly(job, _Scorer()))  # type: ignore[arg-type]
    batch = pa.record_batch([pa.array(texts)], names=["text"])
    pieces = [(start, batch.slice(start, 100)) for start in range(0, len(texts), 100)]
    pool = Pool(Path(), job, Plan((None,) * workers, 1))
    pool._context = multiprocessing.get_context("fork")  # type: ignore[assignment]
    with pool:
        return list(pool.run(lambda: iter(pieces)))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_row_that_kills_its_worker_gets_an_error_and_no_other_does(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a" * (1 + i % 50) for i in range(1000)]
    for place in (0, 437, 438, 999):
        texts[place] = "poison"
    done = deadly_pool(monkeypatch, texts, workers)
    rows = [json.loads(line) for piece in done for line in piece.payload.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row.get("length") for row in rows] == [None if text == "poison" else len(text) for text in texts]
    assert {row["error"] for row in rows if row["text"] == "poison"} == {
        "the worker ended with signal 9 (SIGKILL) on this row"
    }
    assert sum(piece.errors for piece in done) == 4


def test_workers_that_die_at_every_row_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match=r"signal 9 \(SIGKILL\) while it scored") as caught:
        deadly_pool(monkeypatch, ["poison"] * 500, 2)
    assert "\n" not in str(caught.value)


ONE_LINE = [
    (["none.csv", "out.csv"], "no file or folder"),
    (["in.csv", "out.xml"], "must be .parquet, .jsonl or .csv"),
    (["in.txt", "out.csv"], "the input must be"),
    (["in.csv", "in.csv"], "another file than IN"),
    (["in.csv", "none/out.csv"], "no folder"),
    (["in.csv", "there.csv"], "exists; remove it, or add --overwrite"),
    (["in.csv", "out.csv", "--archive", "none.mar"], "no archive"),
    (["in.csv", "out.csv", "--archive", "in.csv"], "in.csv cannot be read"),
    (["in.csv", "out.csv", "--column", "txt"], "did you mean 'text'?"),
    (["in.csv", "out.csv", "--column", "a", "b", "c"], "names 3 columns"),
    (["in.csv", "out.csv", "--keep", "other"], "has no column 'other'"),
    (["in.csv", "out.csv", "--option", "top_k"], "KEY=VALUE"),
    (["in.csv", "out.csv", "--option", "top_k=0"], "top_k"),
    (["in.csv", "out.csv", "--option", "n_best=2"], "'n_best' is no option of sequence_classification"),
    (["in.csv", "out.csv", "--workers", "0"], "--workers must be above 0"),
    (["in.csv", "out.csv", "--device", "tpu"], "a device is cpu, cuda or cuda:N"),
    (["labelled.csv", "out.csv"], "'label' already"),
    (["twice.csv", "out.csv"], "names 'text' twice"),
    (["empty.csv", "out.csv"], "is not a CSV file"),
    (["other.csv", "out.csv"], "no column 'text'"),
    (["bad.parquet", "out.csv"], "is not a Parquet file"),
    (["cut.parquet", "out.csv"], "is not a Parquet file"),
    (["number.parquet", "out.csv"], "is int64, but text must be text"),
    (["array.jsonl", "out.csv"], "holds no JSON objects"),
    (["cut.csv.gz", "out.csv"], "cut.csv.gz"),
    (["mixed", "out.csv"], "files of one kind"),
]


@pytest.mark.parametrize(("arguments", "said"), ONE_LINE, ids=[said for _, said in ONE_LINE])
def test_bad_input_is_one_line(
    arguments: list[str], said: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    good = "text\nthe cat\n"
    files = {
        "in.csv": good, "in.txt": good, "there.csv": good, "labelled.csv": "text,label\nthe cat,own\n",
        "twice.csv": "text,text\na,b\n", "empty.csv": "", "other.csv": "id\n1\n", "bad.parquet": good,
        "array.jsonl": "[1,\n2]\n",
    }  # fmt: skip
    for name, content in files.items():
        Path(name).write_text(content)
    pq.write_table(pa.table({"text": [1]}), "number.parquet")
    Path("cut.parquet").write_bytes(Path("number.parquet").read_bytes()[:-9])
    Path("cut.csv.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00")
    Path("mixed").mkdir()
    for name in ("a.csv", "b.jsonl"):
        Path("mixed", name).touch()
    before = sorted(Path().iterdir())
    assert bulk(Path(arguments[0]), Path(arguments[1]), archive, *arguments[2:]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert said in message
    assert Path("there.csv").read_text() == good
    left = [path for path in sorted(Path().iterdir()) if path not in before]
    assert all(path.name == "out.csv.partial" and not list(path.glob("part-*")) for path in left)


def test_what_an_earlier_run_left_must_be_of_the_same_run(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in.jsonl", [{"text": "who", "id": 1}]), tmp_path / "out.jsonl"
    left = tmp_path / "out.jsonl.partial"
    left.mkdir()
    (left / "_manifest.json").write_text(json.dumps({"input": "another"}))
    (left / "part-000000000000-000000000001.jsonl").write_text("{}\n")
    assert bulk(source, out, archive) == 1
    assert "another input; add --restart" in capsys.readouterr().err
    assert bulk(source, out, archive, "--restart") == 0
    assert read(out)[0]["id"] == 1
    assert not left.exists()


def test_the_page_names_options_that_exist() -> None:
    page = (ROOT / "docs" / "bulk.md").read_text()
    named = set(re.findall(r"--[a-z][a-z-]+", page))
    assert named
    assert named <= set(make_parser()._option_string_actions)


def test_two_runs_do_not_write_one_output(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    source, out = write(tmp_path / "in.jsonl", [{"text": "who"}]), tmp_path / "out.jsonl"
    left = tmp_path / "out.jsonl.partial"
    left.mkdir()
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert bulk(source, out, archive) == 1
    assert "another run is writing" in capsys.readouterr().err
    os.close(handle)
    assert bulk(source, out, archive) == 0


def test_an_output_is_replaced_only_when_all_is_done(archive: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"text": "who"}])
    for out in (tmp_path / "out.jsonl", tmp_path / "folder"):
        assert bulk(source, out, archive) == 0
        assert bulk(source, out, archive) == 1
        assert bulk(source, out, archive, "--overwrite") == 0
    assert [file.name for file in sorted((tmp_path / "folder").iterdir())] == [
        "_manifest.json", "part-000000000000-000000000001.jsonl",
    ]  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 3


def test_windows_keep_rows_and_bounds(tmp_path: Path) -> None:
    lengths = [1, 90, 500, 3, 3, 3, 3, 0, 40, 60, 1, 1] * 10
    pq.write_table(pa.table({"text": ["x" * n for n in lengths]}), tmp_path / "in.parquet", row_group_size=5)
    source = open_source(tmp_path / "in.parquet")
    for start in (0, 1, 5, 47, 119, 120):
        found = list(windows(source.batches(start), 4, 100, ["text"]))
        texts = [text for batch in found for text in batch.column("text").to_pylist()]
        assert [len(text) for text in texts] == lengths[start:]
        for batch in found:
            sizes = [len(text) for text in batch.column("text").to_pylist()]
            assert len(sizes) == 1 or (len(sizes) <= 4 and sum(sizes) <= 100)
        assert len(found) < len(lengths[start:]) or start >= 119


def test_a_plan_uses_every_core_and_no_more_memory_than_there_is(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = archive.parent / "files"
    monkeypatch.setattr("handler.bulk.plan.available_cores", lambda: 8)
    monkeypatch.setattr("handler.bulk.plan.free_memory", lambda: 100e9)
    assert make_plan(folder, None, None, None) == Plan((None,) * 8, 1)
    assert make_plan(folder, None, 4, "cpu") == Plan((None,) * 2, 4)
    assert make_plan(folder, 3, None, None) == Plan((None,) * 3, 2)
    monkeypatch.setattr("handler.bulk.plan.free_memory", lambda: 1.3e9)
    assert make_plan(folder, None, None, None) == Plan((None,) * 2, 4)
    monkeypatch.setattr("handler.bulk.plan.choose_gpu", lambda *_: 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert make_plan(folder, None, None, None) == Plan((0, 1, 2, 0, 1, 2), 1)
    monkeypatch.setattr("handler.bulk.plan.choose_gpu", lambda *_: 1)
    assert make_plan(folder, 2, None, "cuda:1") == Plan((1, 1), 4)


def test_a_scorer_scores_tables_and_frames_and_can_be_pickled(archive: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    import pickle

    scorer = pickle.loads(pickle.dumps(Scorer(archive, {"text": "message"}, options={"top_k": 2}, threads=1)))
    table = scorer(pa.table({"id": [1, 2], "message": ["the cat", None]}))
    assert table.schema.names == ["id", "message", "label", "score", "dropped_tokens", "labels", "error"]
    (frame,) = scorer.frames(iter([pandas.DataFrame({"id": [1, 2], "message": ["the cat", None]})]))
    assert frame["label"][0] == table["label"][0].as_py()
    assert frame["error"].isna().tolist() == [True, False]
    with pytest.raises(ValueError, match="no column 'message'"):
        scorer(pa.table({"text": ["a"]}))
