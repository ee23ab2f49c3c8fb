"""Tuning an archive: the requests, the queue, the choice, and what is written."""

from __future__ import annotations

import json
import queue
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from builder.cli import main
from builder.errors import BuildError
from builder.inspection import read_facts
from builder.mar import replace_files
from builder.serving import default_batch, default_workers
from builder.tune import workers as tune_workers
from builder.tune.mix import MIXES, make_requests
from builder.tune.server import collect
from builder.tune.workers import Figures, Setting, choose, divisions, gpu_divisions, table, variants
from handler.config import SetupConfig
from handler.decode import Decoder
from handler.predictor import Predictor
from tests.unit.handler_fakes import MAX_LENGTH, PooledLogits, TokenOutputs, facts, save_archive

SETTINGS = {"batchSize": 4, "maxBatchDelay": 2, "maxWorkers": 1, "minWorkers": 1, "responseTimeout": 77}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed archive around a fake; as for a machine of two cores, whose divisions are few."""
    monkeypatch.setattr("builder.tune.workers.available_cores", lambda: 2)
    folder = save_archive(tmp_path / "files", PooledLogits(2), "sequence_classification", {"warm_up": False})
    (folder / "model-config.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / "handler").mkdir()
    (folder / "handler" / "threads.py").write_text("")
    packed = tmp_path / "store" / "fake.mar"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w") as written:
        written.writestr("MAR-INF/MANIFEST.json", json.dumps({"createdOn": "now", "model": {}}))
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                written.write(file, file.relative_to(folder))
    return packed


def _figures(workers: int, throughput: float, p95: float) -> Figures:
    return Figures(Setting(workers, 8 // workers, 32, 2), throughput, p95 / 2, p95)


def test_cores_are_divided_without_a_rest() -> None:
    assert divisions(1, 9) == [(1, 1)]
    assert divisions(6, 9) == [(1, 6), (2, 3), (3, 2), (6, 1)]
    assert divisions(6, 2) == [(1, 6), (2, 3)]
    assert divisions(6, 0) == [(1, 6)]


def test_the_best_depends_on_the_goal() -> None:
    one, two, eight = _figures(1, 100, 20), _figures(2, 140, 21), _figures(8, 143, 40)
    assert choose([one, two, eight], "latency") is one
    assert choose([one, two, eight], "throughput") is two, "2 % more are not worth six more workers"
    assert choose([one, two, _figures(8, 150, 40)], "throughput").setting.workers == 8


def test_a_goals_variants_keep_the_division() -> None:
    setting = Setting(2, 4, 32, 2)
    for goal in tune_workers.GOALS:
        tried = list(variants(setting, goal))
        assert setting in tried
        assert len(tried) == len(set(tried))
        assert {(s.workers, s.threads) for s in tried} == {(2, 4)}
    assert {s.max_batch_delay for s in variants(setting, "latency")} == {1, 2, 5}


def test_a_limit_prefers_what_keeps_it() -> None:
    fast, slow, none = (
        Figures(Setting(n, 1, 8, 1), throughput, 10, 20, kept)
        for n, throughput, kept in ((1, 90, 80), (2, 120, 70), (4, 200, 0))
    )
    assert choose([slow, fast, none], "p95") is fast
    assert choose([none], "p95") is none
    assert "kept/s" in table(tune_workers.Result(fast, (fast, none), 50.0, ()))


def test_on_gpus_every_gpu_gets_workers() -> None:
    assert [n for n, _ in gpu_divisions(16, 1, 99)] == [1, 2, 4, 6, 8, 12, 16]
    assert [n for n, _ in gpu_divisions(16, 1, 5)] == [1, 2, 4]
    assert [n for n, _ in gpu_divisions(16, 4, 99)] == [4, 8, 16]
    assert [n for n, _ in gpu_divisions(2, 4, 0)] == [4]
    assert all(n * threads <= 2 * 16 for n, threads in gpu_divisions(16, 1, 99))


@pytest.mark.parametrize(
    ("on_gpu", "cores", "gpus", "expected"), [(True, 16, 1, 4), (True, 64, 8, 32), (True, 4, 2, 2), (True, 128, 1, 4),
                                              (True, 16, 0, 1), (False, 16, 1, 1), (True, 1, 1, 1)],
)  # fmt: skip
def test_default_workers(on_gpu: bool, cores: int, gpus: int, expected: int) -> None:
    assert default_workers(on_gpu, cores, gpus) == expected


def test_a_gpus_batches_are_larger_unless_the_config_says_otherwise() -> None:
    silent = SetupConfig(model_name="any")
    assert [default_batch(silent, on_gpu, gpus) for on_gpu, gpus in ((True, 1), (True, 0), (False, 1))] == [64, 32, 32]
    assert default_batch(SetupConfig(model_name="any", batch_size=8), True, 1) == 8


@pytest.mark.parametrize(
    ("size", "delay", "expected"), [(1, 50, 1), (4, 50, 4), (9, 50, 5)], ids=["one", "full", "rest"]
)
def test_batches_are_collected_as_torchserve_does(size: int, delay: int, expected: int) -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    for item in [1, 2, 3, 4, 5, None]:
        waiting.put(item)
    assert collect(waiting, size, delay) == [1, 2, 3, 4, 5][:expected]
    while collect(waiting, size, delay):
        pass
    assert waiting.get_nowait() is None, "the end stays for the other workers"


def test_a_batch_that_does_not_fill_is_sent_after_the_delay() -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    waiting.put(1)
    assert collect(waiting, 4, 1) == [1]


@pytest.mark.parametrize("mix", MIXES)
def test_mixes_are_drawn_alike_every_time_and_fit(tmp_path: Path, mix: str) -> None:
    folder = save_archive(tmp_path, PooledLogits(2), "sequence_classification", {})
    own = facts("sequence_classification")
    bodies = make_requests(mix, folder, own, MAX_LENGTH)
    assert bodies == make_requests(mix, folder, own, MAX_LENGTH)
    tokenizer = Predictor.load(folder).task.tokenizer
    lengths = [len(tokenizer.backend.encode(json.loads(body)["text"]).ids) for body in bodies]
    assert max(lengths) <= MAX_LENGTH
    assert max(lengths) == MAX_LENGTH
    assert (len(set(lengths)) == 1) == (mix in ("full", "squad"))  # SQuAD's shortest is longer than this model takes


@pytest.mark.parametrize("task", ["question_answering", "rerank", "fill_mask", "embedding"])
def test_every_task_gets_requests_it_can_decode(tmp_path: Path, task: str) -> None:
    folder = save_archive(tmp_path, TokenOutputs(2), task, {"warm_up": False})
    predictor = Predictor.load(folder)
    decoder = Decoder(predictor.task.request, predictor.config.limits, True)
    for body in make_requests("short", folder, predictor.facts, MAX_LENGTH)[:3]:
        decoder.decode({"body": body}, None)


def test_a_file_holds_texts_or_requests(tmp_path: Path) -> None:
    folder = save_archive(tmp_path, PooledLogits(2), "sequence_classification", {})
    path = tmp_path / "mix.txt"
    path.write_text('the cat sat\n\n{"text": "a mat", "text_pair": "who"}\n')
    bodies = [json.loads(body) for body in make_requests(str(path), folder, facts("sequence_classification"), 24)]
    assert bodies == [{"text": "the cat sat"}, {"text": "a mat", "text_pair": "who"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no mix and no file"),
        ("\n", "holds no requests"),
        ("{text}\n", "is not JSON"),
        (b"\xff\xfe\x00", "as text"),
    ],
)
def test_a_file_that_is_no_mix_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    folder = save_archive(tmp_path, PooledLogits(2), "sequence_classification", {})
    path = tmp_path / "mix.txt"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=message):
        make_requests(str(path), folder, facts("sequence_classification"), 24)


def test_the_winner_is_written_into_the_archive(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Not pinned: other tests may have workers on these cores at the same time.
    before = {name: zipfile.ZipFile(archive).read(name) for name in zipfile.ZipFile(archive).namelist()}
    assert main(["tune", str(archive), "--mix", "short", "--for", "latency", "--seconds", "0.05", "--no-pin"]) == 0
    with zipfile.ZipFile(archive) as packed:
        after = {name: packed.read(name) for name in packed.namelist()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"model-config.yaml", "archive.json", "MAR-INF/MANIFEST.json"}
    settings = yaml.safe_load(after["model-config.yaml"])
    tuned = read_facts(archive).tuned
    best = tuned["best"]
    assert best in tuned["measured"]
    assert (tuned["goal"], tuned["mix"]) == ("latency", "short")
    assert all(row["throughput"] > 0 and 0 < row["p50"] <= row["p95"] for row in tuned["measured"])
    assert settings["responseTimeout"] == 77
    assert settings["minWorkers"] == settings["maxWorkers"] == best["workers"]
    assert settings["handler"] == {"threads": best["threads"], "pin": False}
    assert (settings["batchSize"], settings["maxBatchDelay"]) == (best["batch_size"], best["max_batch_delay"])
    assert "<-" in capsys.readouterr().out
    assert [path.name for path in archive.parent.iterdir()] == ["fake.mar"]


def test_a_limit_is_kept_in_the_archive(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.tune.workers.available_cores", lambda: 1)  # a process for each measurement: few
    arguments = ["--for", "p95", "--within", "60000", "--seconds", "0.02", "--mix", "short", "--no-pin"]
    assert main(["tune", str(archive), *arguments]) == 0
    tuned = read_facts(archive).tuned
    assert (tuned["goal"], tuned["within"], tuned["gpus"]) == ("p95", 60000, [])
    assert all(0 < row["kept"] <= row["throughput"] for row in tuned["measured"])
    assert "kept/s" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_said(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = archive.read_bytes()
    assert main(["tune", str(archive), "--device", "cuda"]) == 1
    assert "builder: --device cuda cannot be tuned for: torch sees no GPU here" in capsys.readouterr().err
    assert archive.read_bytes() == before


def test_the_same_contents_give_the_same_bytes(archive: Path) -> None:
    replace_files(archive, {"model-config.yaml": b"batchSize: 1\n"})
    once = archive.read_bytes()
    replace_files(archive, {"model-config.yaml": b"batchSize: 1\n"})
    assert archive.read_bytes() == once


def test_a_failure_leaves_the_archive_as_it_was(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = archive.read_bytes()
    bad = tmp_path / "bad.txt"
    bad.write_text('{"txet": "misspelt"}\n')
    assert main(["tune", str(archive), "--mix", str(bad), "--seconds", "0.05", "--no-pin"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("builder: a worker failed while it was measured: a request was refused: ")
    assert archive.read_bytes() == before

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("builder.mar.rewrite", broken)
    with pytest.raises(OSError, match="disk full"):
        replace_files(archive, {"model-config.yaml": b""})
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.iterdir()] == ["fake.mar"]


def test_a_worker_that_cannot_load_is_said_in_a_line(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_files(archive, {"model.pt": b"no model"})
    assert main(["tune", str(archive), "--seconds", "0.05", "--no-pin"]) == 1
    assert "a worker cannot load the archive: model.pt does not load" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either an archive (NAME.mar) or --model CHECKPOINT"),
        (["x.mar", "--model", "y"], "name either an archive"),
        (["x.mar", "--tf32"], "--tf32 goes with --model"),
        (["--model", "y", "--for", "latency"], "--for goes with an archive"),
        (["--model", "y", "--no-pin"], "--no-pin goes with an archive"),
        (["nowhere.mar"], "no file 'nowhere.mar'"),
        (["x.mar", "--seconds", "0"], "--seconds must be between 0 and 600"),
        (["x.mar", "--within", "50"], "--within goes with --for p95"),
        (["x.mar", "--for", "p95", "--within", "-1"], "--within goes with --for p95"),
        (["--model", "y", "--device", "cpu"], "--device goes with an archive"),
        (["--model", "y"], "tuning cuBLASLt needs a GPU"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["tune", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"builder: {message}")


def test_an_archive_of_an_older_builder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_archive(tmp_path / "files", PooledLogits(2), "sequence_classification", {})
    packed = tmp_path / "old.mar"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    assert main(["tune", str(packed)]) == 1
    assert "old.mar was built before its workers could be given threads; build it again" in capsys.readouterr().err


def test_the_table_marks_the_choice() -> None:
    one, two = _figures(1, 100, 20), _figures(2, 140, 21)
    lines = table(tune_workers.Result(two, (one, two), 50.0, ("2 threads",))).splitlines()
    assert [line.endswith("<-") for line in lines] == [False, False, True, False]
    assert lines[-1] == "p50 and p95 at 50.0 requests/s"
