from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.serving.command import stages, sweep
from benchmarks.serving.load import WARM_UP, Target, arrivals, offer, summarise
from benchmarks.serving.servers import Served, parse_metrics


class Echo(BaseHTTPRequestHandler):
    """200 for a good body with the right token, 400 otherwise."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = body["text"] == "good" and self.headers["Authorization"] == "Bearer key"
        self.send_response(200 if good else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def target() -> Iterator[Target]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Target(f"http://127.0.0.1:{server.server_port}", "/", {"Authorization": "Bearer key"})
    server.shutdown()
    server.server_close()
    thread.join()


# Not importorskip: importing locust patches this process's sockets and threads; the product runs it in its own.
@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="make bench installs locust")
def test_locust_offers_the_rate_and_counts_failures(target: Target) -> None:
    bodies = [json.dumps({"text": text}) for text in ("good", "good", "good", "bad")]
    point = offer(target, bodies, rate=40, seconds=1.5)
    sent = round(40 * WARM_UP) + 60
    assert point.failed == sent // 4
    assert 0 < point.p50 <= point.p95 <= point.p99 < 1000
    assert 35 <= point.requests <= 55
    assert point.achieved == pytest.approx(30, rel=0.25)


def test_arrivals_are_sorted_seeded_and_as_many_as_the_rate_says() -> None:
    times = arrivals(50, 4, seed=1)
    assert times == sorted(times)
    assert sum(t >= WARM_UP for t in times) == 200
    assert max(times) < WARM_UP + 4
    assert times == arrivals(50, 4, seed=1) != arrivals(50, 4, seed=2)


def test_summary_leaves_out_the_warm_up_and_late_answers() -> None:
    samples = [(0.5, 9.0, 200), (2.5, 0.010, 200), (3.0, 0.030, 200), (3.5, 5.0, 200), (3.6, 0.02, 503)]
    point = summarise(samples, sent=6, rate=2, seconds=2)
    assert point.requests == 3
    assert point.achieved == 1  # two of the four good answers came within the two seconds
    assert point.failed == 2  # the 503 and the one that never came
    assert point.p50 == pytest.approx(30)
    assert point.saturated


def test_metrics_are_summed_over_labels() -> None:
    text = '# HELP a b\na_total{model="x"} 2.0\na_total{model="y"} 3.5\nb 1e3\n'
    assert parse_metrics(text) == {"a_total": 5.5, "b": 1000.0}


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


def test_a_sweep_stops_when_the_server_falls_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(Served):
        target = Target("http://127.0.0.1:1", "/", {})  # type: ignore[assignment]

        def __enter__(self) -> Idle:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

    def fake(target: Target, bodies: Any, rate: float, seconds: float, seed: int = 0) -> Any:
        answered = [(WARM_UP + i * seconds / 40, 0.001, 200) for i in range(int(min(rate, 20) * seconds))]
        return summarise(answered, sent=int(rate * seconds), rate=rate, seconds=seconds)

    monkeypatch.setattr("benchmarks.serving.command.offer", fake)
    rows = list(sweep(Idle(), [{"text": "a"}], [40, 10, 20, 80], seconds=2))
    assert [row["offered"] for row in rows] == [10, 20, 40]
