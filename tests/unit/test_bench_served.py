from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import served
from benchmarks.gpu.connections import Load, difference, load
from deploy.server import Server


class Echo(BaseHTTPRequestHandler):
    """Answers {"label", "score"} as the body says; 503 where it says so."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"label": body["text"], "score": 0.5}).encode()
        self.send_response(503 if body["text"] == "refused" else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


class Backlog(ThreadingHTTPServer):
    """Takes all clients that connect at the same moment."""

    request_queue_size = 64


@pytest.fixture
def url() -> Iterator[str]:
    server = Backlog(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"label": "a", "score": 0.25}, {"label": "a", "score": 0.5}, 0.25),
        ({"label": "a", "score": 0.25}, {"label": "b", "score": 0.25}, float("inf")),
        ({"label": "a"}, {"label": "a", "score": 0.25}, float("inf")),
        ([{"start": 1, "score": 0.5}], [{"start": 1, "score": 0.5}], 0.0),
        ([{"start": 1, "score": 0.5}], [{"start": 2, "score": 0.5}], float("inf")),
        ([], [0.5], float("inf")),
    ],
)
def test_scores_differ_by_numbers_and_all_else_by_infinity(one: Any, other: Any, expected: float) -> None:
    assert difference(one, other) == expected


def test_a_comparison_counts_other_labels_apart_from_scores() -> None:
    answers = [{"label": label, "score": score} for label, score in (("a", 0.5), ("b", 0.5), ("c", 0.25))]
    expected = [{"label": label, "score": score} for label, score in (("a", 0.5), ("a", 0.5), ("c", 0.251))]
    found = served.Comparison.of(answers, expected)
    assert (found.compared, found.same, found.passed) == (3, 2, False)
    assert found.worst == pytest.approx(0.001)
    assert served.Comparison.of(answers[2:], expected[2:]).passed
    assert not served.Comparison.of([{"score": 0.5}], [{"score": 0.5 + 2 * served.ALLOWED}]).passed


def test_every_answer_under_load_is_held_against_the_expected_one(url: str) -> None:
    bodies = [{"text": text} for text in ("right", "wrong", "refused")]
    expected = [{"label": label, "score": 0.5} for label in ("right", "right", "refused")]
    figures = load(Load(url, {}, bodies, expected, allowed=0.01), connections=18, seconds=0.3)
    assert set(figures["answers"]) == {"200", "different", "503"}
    assert figures["requests_per_second"] > 0
    assert 0 < figures["milliseconds"]["50"] <= figures["milliseconds"]["99"]


def test_a_server_that_is_gone_is_counted_by_the_exception(url: str) -> None:
    gone = Load("http://127.0.0.1:1", {}, [{"text": "right"}], [{}], allowed=0.01)
    assert set(load(gone, connections=1, seconds=0.1)["answers"]) == {"ConnectionError"}


@pytest.mark.parametrize("task", ["sequence_classification", "question_answering"])
def test_requests_are_the_same_every_time_and_of_many_lengths(task: str) -> None:
    bodies = served.payloads(task, 50)
    assert bodies == served.payloads(task, 50)
    assert len({len(body.get("text") or body["context"]) for body in bodies}) > 20
    assert all(("question" in body) == (task == "question_answering") for body in bodies)


def test_the_served_file_is_told_apart_from_the_archive_s(tmp_path: Path) -> None:
    archive = tmp_path / "one.mar"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("model.pt", b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert served.archived_digest(archive) == digest
    server = Server(tmp_path / "server", tmp_path)
    assert served.extracted_digest(server, "one") == ""
    for name, content in (("two", b"others"), ("one", b"weights")):
        folder = server.folder / "extracted" / "models" / name
        folder.mkdir(parents=True)
        (folder / "archive.json").write_text(json.dumps({"name": name}))
        (folder / "model.pt").write_bytes(content)
    assert served.extracted_digest(server, "one") == digest
    assert served.extracted_digest(server, "two") != digest


def test_the_worker_s_own_line_is_found_in_its_log(tmp_path: Path) -> None:
    server = Server(tmp_path, tmp_path)
    (tmp_path / "logs").mkdir()
    line = (
        "2026-01-01 [INFO ] W-9000-one_1.0-stdout MODEL_LOG - one runs on cuda:0 (a GPU) in fp16 with libefft_cuda.so"
    )
    (tmp_path / "logs" / "model_log.log").write_text(f"other\n{line}\nmore\n")
    assert served.said(server, "one") == "one runs on cuda:0 (a GPU) in fp16 with libefft_cuda.so"
    assert served.said(server, "two") == ""


def test_a_run_is_good_only_where_all_is() -> None:
    archive = {"archived_sha256": "x", "served_sha256": "x", "device": "cuda:0", "passed": True}
    result: dict[str, Any] = {
        "archives": {"one": archive},
        "rows": [{"answers": {"200": 9}}],
        "same_workers": True,
    }
    assert served.good(result)
    assert not served.good({**result, "same_workers": False})
    assert not served.good({**result, "rows": [{"answers": {"200": 9, "different": 1}}]})
    for change in ({"device": "cpu"}, {"passed": False}, {"served_sha256": ""}):
        assert not served.good({**result, "archives": {"one": {**archive, **change}}})
