from __future__ import annotations

import json
import math
import re
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import transformers

from benchmarks import table
from benchmarks.serving import command
from benchmarks.serving.answers import ASKED, Agreement, Reference, apart, difference
from benchmarks.serving.command import Candidate
from benchmarks.serving.load import Refused, Target, summarise
from benchmarks.serving.peers import Infinity
from benchmarks.serving.servers import Answer, Served

SCORES = {"red": 0.5, "green": 0.495, "blue": 0.005}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer("red", 0.5), None),
        (Answer("red", 0.509), None),
        (Answer("red", None), None),
        (Answer("green", 0.5), None),  # as good as red, within the tolerance
        (Answer("red", 0.511), "red with a score of 0.5110 instead of 0.5000"),
        (Answer("blue", 0.005), "blue instead of red"),
        (Answer("blue", None), "blue instead of red"),
        (Answer("mauve", 0.5), "mauve instead of red"),
    ],
)
def test_an_answer_may_differ_by_the_tolerance_only(answer: Answer, expected: str | None) -> None:
    assert difference(answer, SCORES, 0.01) == expected


class Labels(BaseHTTPRequestHandler):
    """Answers a text's first word as its label; "down" is a status of 500, "odd" JSON without a label."""

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        body = json.dumps({"odd": 1} if text == "odd" else {"label": text.split()[0], "score": 0.9}).encode()
        self.send_response(500 if text == "down" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class There(Served):
    """A server that is there already."""

    def __init__(self, target: Target) -> None:
        self.there = target

    @property
    def target(self) -> Target:
        return self.there

    def __enter__(self) -> There:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[There]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Labels)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield There(Target(f"http://127.0.0.1:{server.server_port}", "/", {}))
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("good bad", None),
        ("bad good", "1 of 3 answers differ from transformers': bad instead of good"),
        ("down", "status 500"),
        ("odd", "an answer without a label"),
    ],
)
def test_a_server_is_refused_for_one_wrong_answer(served: There, text: str, reason: str | None) -> None:
    scores = {"good": 0.9, "bad": 0.1}
    reference = Reference(["good", text, "good"], [scores] * 3)
    if reason is None:
        reference.check(served, 0.01)
        return
    with pytest.raises(Refused, match=reason):
        reference.check(served, 0.01)


def test_a_server_that_is_gone_is_refused() -> None:
    with pytest.raises(Refused, match="no answer"):
        Reference(["good"], [{"good": 1.0}]).check(There(Target("http://127.0.0.1:1", "/", {})), 0.01)


def test_the_reference_is_what_transformers_answers_to_texts_from_first_to_last(checkpoint: Path) -> None:
    texts = [f"the cat sat {number}" for number in range(2 * ASKED)]
    reference = Reference.of(checkpoint, texts, longest=8)
    assert list(reference.texts) == texts[::2]
    pipeline = transformers.pipeline("text-classification", model=str(checkpoint), top_k=None)
    (expected,) = pipeline([texts[2]], truncation=True, max_length=8)
    assert reference.scores[1] == pytest.approx({entry["label"]: entry["score"] for entry in expected})


def test_what_is_no_choice_of_one_label_has_no_reference(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    with pytest.raises(ValueError, match="does not give each text one of several labels"):
        Reference.of(checkpoint, ["the cat"], longest=8)


def test_a_refused_server_gets_no_load_and_the_table_says_why(served: There, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Target] = []

    def offered(target: Target, bodies: Any, rate: float, seconds: float, seed: int = 0) -> Any:
        loaded.append(target)
        thread = {"sent": 1, "good": 1, "finished": 1, "latest": 0.5, "late": [[0, 1]]}
        return summarise({"threads": [thread], "histogram": [[1000, 1]]}, sent=1, rate=rate, seconds=seconds)

    monkeypatch.setattr("benchmarks.serving.runs.exercise", loaded.append)
    monkeypatch.setattr("benchmarks.serving.runs.offer", offered)
    wrong = There(Target("http://127.0.0.1:1", "/", {}))
    options = Namespace(rates=[1.0], p95=None, connections=None, seconds=1.0, rounds=2)
    check = partial(Reference(["good"], [{"good": 0.9, "bad": 0.1}]).check, tolerance=0.01)
    payloads = [{"text": "good"}]
    candidates = [Candidate("plain", wrong, check, payloads), Candidate("litserve:bf16", served, check, payloads)]
    measured: dict[str, Any] = {"rows": [], "refused": {}, "engine_rate": {}}
    saved = [len(measured["rows"]) for _ in command.measure(candidates, options, math.inf, measured)]
    assert saved == [0, 1, 2]  # behind the refusal, and behind every row
    assert set(measured["refused"]) == {"plain"}
    assert {row["server"] for row in measured["rows"]} == {"litserve:bf16"}
    assert wrong.target not in loaded
    assert served.target in loaded
    result = {"kind": "serving", "settings": {"data": "a.tsv", "data_type": "fp32"}, **measured}
    (drawn,) = table.of(result)
    assert drawn.notes == [f"not loaded: plain: {measured['refused']['plain']}"]


def test_a_search_gives_the_median_of_its_rounds_and_ends_with_the_runs_time(
    served: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter((10.0, 30.0, 20.0))

    def found(*_: Any) -> Iterator[dict[str, Any]]:
        yield {"offered": 9.0, "achieved": next(rates), "failed": 0, "p95": 80.0}

    monkeypatch.setattr(command, "find", found)
    options = Namespace(rates=None, p95=100.0, connections=None, seconds=1.0, rounds=3)
    candidate = Candidate("thsext:fp32", served, lambda _: None, [{"text": "good"}])
    measured: dict[str, Any] = {"rows": [], "refused": {}}
    assert len(list(command.measure([candidate], options, math.inf, measured))) == 6
    assert measured["at_p95"] == {"thsext:fp32": 20.0}
    assert [row["round"] for row in measured["rows"]] == [0, 1, 2]
    monkeypatch.undo()
    monkeypatch.setattr("benchmarks.serving.runs.exercise", lambda target: None)
    options = Namespace(rates=[5.0], p95=None, connections=[1], seconds=60.0, rounds=1)
    assert list(command.measure([candidate], options, time.monotonic() + 30, measured)) == []


def test_servers_of_one_archive_must_answer_alike_and_archives_may_differ(served: There) -> None:
    agreement = Agreement([{"text": "good day"}, {"text": "bad day"}])
    agreement.check(served, "one")
    agreement.check(served, "one")
    agreement.answers["two"] = [agreement.answers["one"][0], {"label": "other", "score": 0.9}]
    assert agreement.different == 1
    with pytest.raises(Refused, match="1 of 2 answers differ"):
        agreement.check(served, "two")
    agreement.answers["two"] = [{**answer, "score": 0.895} for answer in agreement.answers["one"]]
    with pytest.raises(Refused, match="2 of 2"):
        agreement.check(served, "two")
    agreement.device_differs = True
    agreement.check(served, "two")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"label": "a", "score": 0.25}, {"label": "a", "score": 0.5}, 0.25),
        ({"label": "a", "score": 0.25}, {"label": "b", "score": 0.25}, math.inf),
        ({"label": "a"}, {"label": "a", "score": 0.25}, math.inf),
        ([{"start": 1, "score": 0.5}], [{"start": 1, "score": 0.5}], 0.0),
        ([{"start": 1, "score": 0.5}], [{"start": 2, "score": 0.5}], math.inf),
        ([], [0.5], math.inf),
    ],
)
def test_scores_are_apart_by_numbers_and_all_else_by_infinity(one: Any, other: Any, expected: float) -> None:
    assert apart(one, other) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--servers triton", "no server 'triton' of archives; there are torchserve, torchserve-cpu, http, ray"),
        ("--prepare", "--prepare needs --store, and no --archives"),
        ("", "--archives: two of them have the same name"),
    ],
)
def test_archives_that_cannot_be_measured_are_refused_at_once(arguments: str, message: str, tmp_path: Path) -> None:
    parser = ArgumentParser()
    command.add_arguments(parser)
    given = ["--archives", str(tmp_path / "a.mar"), str(tmp_path / "b" / "a.mar"), *arguments.split()]
    with pytest.raises(ValueError, match=re.escape(message)):
        command.run(parser.parse_args(given))


def test_infinity_answers_with_the_best_of_all_labels(tmp_path: Path) -> None:
    server = Infinity(tmp_path / "infinity_emb", tmp_path, "fp32", 1, tmp_path)
    data = [[{"label": "red", "score": 0.2}, {"label": "blue", "score": 0.7}, {"label": "green", "score": 0.1}]]
    assert server.answer({"data": data}) == Answer("blue", 0.7)
    with pytest.raises(KeyError):
        server.answer({"error": "overloaded"})
