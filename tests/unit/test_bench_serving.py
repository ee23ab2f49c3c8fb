from __future__ import annotations

import json
import shutil
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import yaml

from benchmarks import table, texts
from benchmarks.serving import empty, empty_handler, prepare, search
from benchmarks.serving.command import named
from benchmarks.serving.engine import engine_rate
from benchmarks.serving.load import Target, arrivals, burst, closed, exercise, offer, summarise
from benchmarks.serving.prepare import settle
from benchmarks.serving.runs import find, loops, stages, sweep
from benchmarks.serving.servers import Served, parse_metrics
from benchmarks.workloads import DISTRIBUTIONS
from handler.predictor import Predictor
from handler.threads import available_cores
from tests.unit.handler_fakes import PooledLogits, facts, save_archive, save_tokenizer


class Echo(BaseHTTPRequestHandler):
    """200 for a good body with the right token, 400 otherwise."""

    protocol_version = "HTTP/1.1"
    refused = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = body.get("text") == "good" and self.headers["Authorization"] == "Bearer key"
        Echo.refused += not good
        self.send_response(200 if good else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 128)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Target(f"http://127.0.0.1:{server.server_port}", "/", {"Authorization": "Bearer key"})
    server.shutdown()
    server.server_close()
    thread.join()


needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, the load generator, is not installed")


@needs_wrk
def test_an_open_loop_offers_the_rate_and_counts_failures(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.load.WARM_UP", 0.3)
    monkeypatch.setattr("benchmarks.serving.load.GRACE", 1.0)
    bodies = [json.dumps({"text": text}) for text in ("good", "good", "good", "bad")]
    point = offer(target, bodies, rate=40, seconds=1.5)
    assert point.failed == 15
    assert point.p50 is not None
    assert point.p50 > 0
    assert point.p95 is point.p99 is None  # a quarter failed
    assert point.requests == 45
    assert 0 < point.achieved <= 30
    assert point.generator_ms > 0


@needs_wrk
def test_a_closed_loop_asks_again_as_soon_as_it_is_answered(target: Target) -> None:
    loop = closed(target, ['{"text": "good"}'], connections=4, seconds=1, threads=2, warm_up=0)
    assert loop.requests_per_second > 20
    assert 0 < loop.p50 <= loop.p95 <= loop.p99
    assert loop.failed == 0
    assert loop.generator_cores > 0
    assert closed(target, ['{"text": "bad"}'], connections=1, seconds=1, warm_up=0).failed > 5


@needs_wrk
def test_refused_requests_are_no_failure_of_the_warm_up(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.load.REFUSED", 5)
    monkeypatch.setattr("benchmarks.serving.load.GRACE", 1.0)
    before = Echo.refused
    exercise(Target(target.url, target.path, {}))
    assert Echo.refused - before == 5


@needs_wrk
def test_a_burst_lasts_until_the_last_answer_and_all_must_be_good(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.serving.load.PATIENCE", 2.0)
    assert 0 < burst(target, ['{"text": "good"}'], 20) < 30
    with pytest.raises(ValueError, match="of 20 requests sent at once 10 were not answered"):
        burst(target, ['{"text": "good"}', '{"text": "bad"}'], 20)


def test_a_missing_load_generator_is_named(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("EFFT_WRK", raising=False)
    with pytest.raises(ValueError, match="apt-get install wrk"):
        closed(target, ["{}"], 1, 1)


def test_arrivals_are_sorted_seeded_and_as_many_as_the_rate_says() -> None:
    times = arrivals(50, 4, seed=1)
    assert times == sorted(times)
    assert len(times) == 200
    assert max(times) < 4
    assert times == arrivals(50, 4, seed=1) != arrivals(50, 4, seed=2)


def test_what_is_not_answered_is_infinitely_late() -> None:
    thread = {"sent": 6, "good": 3, "finished": 2, "latest": 7.0, "late": [[0, 4], [40, 2]]}
    histogram = [[10_000, 1], [30_000, 1], [5_000_000, 1], [20_000, 0]]
    point = summarise({"threads": [thread], "histogram": histogram}, sent=5, rate=2, seconds=2)
    assert point.requests == 3
    assert point.achieved == 1  # two of the good answers came within the two seconds
    assert point.failed == 2
    assert point.late_ms == 40
    assert point.p50 == pytest.approx(5040)  # of 10, 30 and 5000 ms and two that were not answered, 40 ms after due
    assert point.p95 is None
    assert point.saturated


def test_metrics_are_summed_over_labels() -> None:
    text = '# HELP a b\na_total{model="x"} 2.0\na_total{model="y"} 3.5\nb 1e3\n'
    assert parse_metrics(text) == {"a_total": 5.5, "b": 1000.0}
    text = 's_sum{W="1",Stage="run",H="x",} 1.5\ns_sum{W="2",Stage="run",H="x",} 2.0\ns_sum{W="1",Stage="encode",} 4\n'
    assert parse_metrics(text) == {"s_sum:run": 3.5, "s_sum:encode": 4.0}


def test_stages_give_the_mean_wait_and_the_handlers_times() -> None:
    before = {"ts_inference_requests_total": 10.0, "ts_queue_latency_microseconds": 1000.0}
    after = {
        "ts_inference_requests_total": 30.0,
        "ts_queue_latency_microseconds": 41000.0,
        "efft_run_time": 7.5,
        "efft_encode_time": 0.25,
    }
    assert stages(before, after) == {"queue": 2.0, "encode": 0.25, "run": 7.5}
    assert stages(before, before) == {}
    names = ("efft_stage_seconds_sum:run", "efft_stage_seconds_count:run")
    before |= dict(zip(names, (3.0, 10.0), strict=True))
    after |= dict(zip(names, (3.5, 110.0), strict=True))
    assert stages(before, after) == {"queue": 2.0, "encode": 0.25, "run": 5.0}  # over the run, not of its last second


class Idle(Served):
    """A server that is not there."""

    target = Target("http://127.0.0.1:1", "/", {})  # type: ignore[assignment]

    def __enter__(self) -> Idle:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def accepted(served: Served) -> None:
    """A check that any server passes."""


def _answered(limit: float, latency: float = 0.001) -> Any:
    """An ``offer`` of a server that answers ``limit`` requests a second, late ones as soon as more are offered."""

    def offered(target: Target, bodies: Any, rate: float, seconds: float, seed: int = 0) -> Any:
        number, late = int(rate * seconds), latency if rate <= limit else 5.0
        finished = number if late < 1 else 0
        thread = {"sent": number, "good": number, "finished": finished, "latest": seconds, "late": [[0, number]]}
        result = {"threads": [thread], "histogram": [[round(1e6 * late), number]]}
        return summarise(result, sent=number, rate=rate, seconds=seconds)

    return offered


def test_a_sweep_stops_when_the_server_falls_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.runs.exercise", lambda target: None)
    monkeypatch.setattr("benchmarks.serving.runs.offer", _answered(20))
    rows = list(sweep(Idle(), accepted, [{"text": "a"}], [40, 10, 20, 80], seconds=2))
    assert [row["offered"] for row in rows] == [10, 20, 40]
    assert list(sweep(Idle(), accepted, [{"text": "a"}], [10], 2, until=time.monotonic() + 3)) == []


def test_the_search_closes_in_on_the_greatest_rate_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.runs.exercise", lambda target: None)
    monkeypatch.setattr("benchmarks.serving.runs.offer", _answered(71, latency=0.08))
    monkeypatch.setattr("benchmarks.serving.runs.burst", lambda target, bodies, number: number / 100)
    rows = list(find(Idle(), accepted, [{"text": "a"}], limit=100, seconds=2))
    assert [row["offered"] for row in rows] == pytest.approx([80, 60, 70, 75])
    assert [search.within(row, 100) for row in rows] == [False, True, True, False]
    assert not any(search.within(row, 79) for row in find(Idle(), accepted, [{"text": "a"}], limit=79, seconds=2))


def test_where_no_rate_near_the_capacity_is_kept_lower_ones_are_tried() -> None:
    def offered(rate: float) -> dict[str, Any]:
        return {"offered": rate, "failed": 0, "p95": 90.0 if rate < 35 else 110.0}

    assert [row["offered"] for row in search.rates(100, 100, offered)] == pytest.approx([80, 60, 50, 45, 40, 30])


def test_capacity_is_that_of_a_burst_some_seconds_long() -> None:
    sent: list[int] = []

    def lasting(number: int) -> float:
        sent.append(number)
        return 0.5 + number / 50

    assert search.capacity(lasting) == pytest.approx(sent[1] / lasting(sent[1]))
    assert sent[0] == search.FIRST_BURST < sent[1]


def test_the_engines_rate_counts_the_models_time_alone(classifier: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(100))
    monkeypatch.setattr("benchmarks.serving.engine.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    payloads = [{"text": "the cat sat"}] * 5
    assert engine_rate(classifier, payloads, batch=2) == pytest.approx(5 / 3)  # a second for each of three passes


def test_texts_have_the_lengths_that_are_drawn(tmp_path: Path) -> None:
    file = save_tokenizer(tmp_path / "tokenizer.json")
    own = ["the cat sat on a mat", "who is it", "two"]
    assert texts.mixed("data", own, file, 24) == own
    drawn = texts.mixed("uniform", own, file, 24)
    assert drawn == texts.mixed("uniform", own, file, 24)
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    lengths = [len(tokenizer.encode(text)) for text in drawn]
    assert sorted(lengths) == sorted(DISTRIBUTIONS["uniform"](texts.TEXTS, 24))
    assert texts.mean_tokens(drawn, file) == pytest.approx(sum(lengths) / len(lengths))


def test_texts_of_words_have_few_to_many_of_them_the_earlier_ones_more_often() -> None:
    drawn = list(islice(texts.of_words({"late": 9, "early": 3, "##no": 1, "mid": 5}, 2, 4), 300))
    assert drawn == list(islice(texts.of_words({"late": 9, "early": 3, "##no": 1, "mid": 5}, 2, 4), 300))
    assert {len(text.split()) for text in drawn} == {2, 3, 4}
    counts = Counter(word for text in drawn for word in text.split())
    assert counts["early"] > counts["mid"] > counts["late"] > 0


def test_questions_are_asked_of_the_samples_documents() -> None:
    asked = texts.payloads("question_answering", [])
    assert len(asked) > 20
    assert all(payload.keys() == {"question", "context"} for payload in asked)
    assert texts.payloads("embedding", ["a"]) == [{"text": "a"}]


def test_a_size_becomes_a_checkpoint_and_a_folder_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    monkeypatch.setitem(prepare.SIZES, "small", {**small, "vocab_size": 60})
    save_tokenizer(tmp_path / "tokenizer.json")
    made = prepare.checkpoint("small", tmp_path, tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in made.iterdir()}
    assert json.loads((made / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
    assert prepare.checkpoint(str(made), tmp_path, tmp_path) == made
    with pytest.raises(ValueError, match="no model in nowhere"):
        prepare.checkpoint("nowhere", tmp_path, tmp_path)


def test_servers_are_named_with_their_type() -> None:
    given = ("ths", "thsext:int8", "plain", "litserve:bf16", "infinity")
    assert [named(name, "bf16") for name in given] == [
        "ths:bf16", "thsext:int8", "plain", "litserve:bf16", "infinity",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="there are ori, ths, thsext, plain"):
        named("triton", "fp32")
    for wrong in ("thsext:int3", "plain:int8"):
        with pytest.raises(ValueError, match="types are fp32, bf16"):
            named(wrong, "fp32")


def test_an_archive_that_is_not_tuned_gets_a_worker_a_core(tmp_path: Path) -> None:
    folder = save_archive(tmp_path / "files", PooledLogits(2), "sequence_classification", {})
    archive = tmp_path / "fake.mar"
    for tuned in ({"goal": "latency"}, {}):
        with zipfile.ZipFile(archive, "w") as packed:
            packed.write(folder / "tokenizer.json", "tokenizer.json")
            packed.writestr("archive.json", facts("sequence_classification", tuned=tuned).model_dump_json())
            packed.writestr("model-config.yaml", "{batchSize: 32, responseTimeout: 77}")
        settle(archive, "thsext")
        settings = yaml.safe_load(zipfile.ZipFile(archive).read("model-config.yaml"))
        assert settings["responseTimeout"] == 77
        assert settings["batchSize"] == (32 if tuned else 8)
    assert settings["maxWorkers"] == available_cores()
    assert settings["handler"] == {"threads": 1, "pin": True}


@needs_wrk
def test_closed_loops_make_a_row_for_each_number_of_connections(target: Target) -> None:
    class Running(Idle):
        pass

    Running.target = target  # type: ignore[assignment]
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.serving.runs.exercise", lambda target: None)
        rows = list(loops(Running(), accepted, [{"text": "good"}], [1, 3], seconds=1))
    assert [row["connections"] for row in rows] == [1, 3]
    assert all(row["achieved"] > 10 and row["failed"] == 0 for row in rows)
    result = {"kind": "loops", "settings": {"data": "a.tsv", "data_type": "fp32"}, "engine_rate": {}}
    (drawn,) = table.of({**result, "rows": [{"server": "x", **row} for row in rows]})
    assert drawn.header[1] == "connections"


def test_the_empty_handler_has_the_workers_of_an_archive(tmp_path: Path) -> None:
    beside = tmp_path / "beside.mar"
    with zipfile.ZipFile(beside, "w") as packed:
        packed.writestr("model-config.yaml", "maxWorkers: 3\nminWorkers: 3\nbatchSize: 8\nhandler: {threads: 1}\n")
    with zipfile.ZipFile(empty.build(beside, tmp_path)) as packed:
        settings = yaml.safe_load(packed.read("model-config.yaml"))
        assert "empty_handler.py" in packed.namelist()
    assert settings == {"maxWorkers": 3, "minWorkers": 3, "batchSize": 8}
    assert [len(empty_handler.handle(rows, None)) for rows in (None, [{}, {}])] == [0, 2]
