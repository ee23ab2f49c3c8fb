from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results, tables
from benchmarks.accuracy import command, metrics, samples
from benchmarks.accuracy.command import Candidate, answer, score
from benchmarks.accuracy.datasets import (
    Example,
    has_unanswerable,
    read_conll,
    read_labels,
    read_mrpc,
    read_squad,
    read_sst2,
    to_iob2,
)
from handler.config import SetupConfig
from handler.predictor import Reply

ROOT = Path(__file__).resolve().parents[2]
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "paragraphs": [
                {
                    "context": "Bees live in a hive.",
                    "qas": [
                        {"question": "Where?", "id": "1", "answers": [{"text": "a hive", "answer_start": 13}] * 2},
                        {"question": "Why?", "id": "2", "is_impossible": True, "answers": []},
                    ],
                }
            ]
        }
    ],
}
SPAN = {"answer": "x", "start": 1, "score": 0.5}
CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER

Rome NNP I-NP I-LOC
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "data.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_squad_reads_both_versions(tmp_path: Path) -> None:
    examples = read_squad(write(tmp_path, json.dumps(SQUAD)))
    assert [e.expected for e in examples] == [["a hive"], [""]]
    assert examples[0].payload == {"question": "Where?", "context": "Bees live in a hive."}
    assert has_unanswerable(examples)
    assert not has_unanswerable(examples[:1])


@pytest.mark.parametrize("text", ['{"rows": []}', '{"data": [{"title": "a"}]}', "[1]", "no JSON"])
def test_a_file_of_another_form_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=f"{path.name} is no SQuAD file"):
        read_squad(path)


def test_mrpc_keeps_quotes_as_they_are(tmp_path: Path) -> None:
    text = 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "yes\tHe agreed\n0\t9\t10\tA\tB\n'
    examples = read_mrpc(write(tmp_path, text))
    assert examples[0] == Example({"text": 'He said "yes', "text_pair": "He agreed"}, "1")
    assert [e.expected for e in examples] == ["1", "0"]


def test_sst2(tmp_path: Path) -> None:
    examples = read_sst2(write(tmp_path, "sentence\tlabel\na fine film\t1\n"))
    assert examples == [Example({"text": "a fine film"}, "1")]


def test_labels_takes_the_dev_split_only(tmp_path: Path) -> None:
    examples = read_labels(write(tmp_path, "text\tlabel\tsplit\na\tx\ttrain\nb\ty\tdev\n"))
    assert examples == [Example({"text": "b"}, "y")]


def test_a_file_without_the_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows with a column 'sentence'"):
        read_sst2(write(tmp_path, "text\tlabel\na\t1\n"))


def test_conll_gives_sentences_in_iob2_with_the_words_places(tmp_path: Path) -> None:
    first, second = read_conll(write(tmp_path, CONLL))
    assert first.payload["text"] == "EU rejects Peter Blackburn"
    assert first.expected == ["B-ORG", "O", "B-PER", "I-PER"]
    assert [first.payload["text"][a:b] for a, b in first.words] == ["EU", "rejects", "Peter", "Blackburn"]
    assert second.expected == ["B-LOC"]


def test_iob2_keeps_what_is_iob2_already() -> None:
    assert to_iob2(["B-A", "I-A", "B-A", "O", "I-A", "I-B"]) == ["B-A", "I-A", "B-A", "O", "B-A", "B-B"]


def test_squad_measure_normalises_and_counts_right_silence() -> None:
    pytest.importorskip("torchmetrics", reason="make bench installs torchmetrics")
    examples = [Example({}, ["Cat", "a dog"]), Example({}, [""]), Example({}, [""]), Example({}, ["two words"])]
    answers = [{"answer": "The dog!"}, {"answer": ""}, {"answer": "x"}, {"answer": "two"}]
    found = metrics.squad(examples, answers, [])
    assert found["exact_match"] == pytest.approx(50)
    assert found["f1"] == pytest.approx(100 * (1 + 1 + 0 + 2 / 3) / 4)


def test_binary_measure_matches_labels_by_name_or_number() -> None:
    pytest.importorskip("sklearn", reason="make bench installs scikit-learn")
    examples = [Example({}, label) for label in ("1", "1", "0", "0")]
    answers = [{"label": label} for label in ("equivalent", "different", "equivalent", "different")]
    found = metrics.binary(examples, answers, ["different", "equivalent"])
    assert found == {"accuracy": pytest.approx(50), "f1": pytest.approx(50)}
    with pytest.raises(ValueError, match="'maybe' is none of the model's"):
        metrics.binary([Example({}, "maybe")], [{"label": "different"}], ["different", "equivalent"])


def test_entities_measure_wants_exact_spans(tmp_path: Path) -> None:
    pytest.importorskip("nervaluate", reason="make bench installs nervaluate")
    examples = read_conll(write(tmp_path, CONLL))
    answers: list[dict[str, Any]] = [
        {"entities": [{"label": "ORG", "start": 0, "end": 2}, {"label": "PER", "start": 11, "end": 16}]},
        {"entities": [{"label": "LOC", "start": 0, "end": 4}]},
    ]
    assert metrics.tags_of(answers[0]["entities"], examples[0]) == ["B-ORG", "O", "B-PER", "O"]
    found = metrics.entities(examples, answers, [])
    assert found["f1"] == pytest.approx(100 * 2 / 3)


class Parrot:
    """A predictor that answers each text with itself, or refuses it."""

    class facts:
        labels = ("a", "b")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, rows: list[dict[str, Any]]) -> list[Reply]:
        self.batches.append(len(rows))
        refused = {"error": {"message": "too long"}}
        return [
            Reply(400, "Bad Request", refused)
            if row["body"]["text"] == "bad"
            else Reply(200, "OK", {"label": row["body"]["text"]})
            for row in rows
        ]


def test_every_candidate_answers_every_example_in_order() -> None:
    pytest.importorskip("sklearn", reason="make bench installs scikit-learn")
    examples = [Example({"text": label}, label) for label in ("a", "b", "b", "a", "a")]
    candidates = [Candidate("ori", "fp32", Parrot()) for _ in range(2)]  # type: ignore[arg-type]
    answer(candidates, examples, batch=2)
    assert candidates[1].predictor.batches == [2, 2, 2, 1]  # type: ignore[attr-defined]
    candidates[1].answers[2] = {"label": "a"}
    row = score(candidates[1], candidates[0], examples, "labels")
    assert row["accuracy"] == pytest.approx(80)
    assert row["different_predictions"] == 1
    assert row["ms_per_example"] > 0


def test_a_refused_example_ends_the_run_by_its_number() -> None:
    examples = [Example({"text": "a"}, "a"), Example({"text": "bad"}, "a")]
    with pytest.raises(ValueError, match="example 1: too long"):
        answer([Candidate("ori", "fp32", Parrot())], examples, batch=8)  # type: ignore[arg-type]


def test_the_shipped_dev_sets_are_read() -> None:
    questions = read_squad(ROOT / "samples" / "data" / "documents-dev.json")
    assert has_unanswerable(questions)
    assert len(questions) >= 100
    tickets = read_labels(ROOT / "samples" / "data" / "tickets.tsv")
    assert len(tickets) >= 100
    assert len({example.expected for example in tickets}) == 6


def test_8_bits_are_asked_of_thsext_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(config: SetupConfig, folder: Path) -> Path:
        built.append((config.kind, config.data_type))
        return folder / "x.mar"

    monkeypatch.setattr(command.archives, "build", build)
    monkeypatch.setattr(command.archives, "load", lambda *_: Parrot())
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    data = write(tmp_path, "text\tlabel\na\ta\n")
    arguments = ["--task", "labels", "--data", str(data), "--model", str(tmp_path), "--types", "fp32", "int8"]
    options = parser.parse_args(arguments)
    command._candidates(options, read_labels(data), tmp_path)
    assert built == [("ori", "fp32"), ("ths", "fp32"), ("thsext", "fp32"), ("thsext", "int8")]
    with pytest.raises(ValueError, match="thsext"):
        command.run(parser.parse_args([*arguments[:-2], "int8", "--kinds", "ths"]))


def test_what_two_devices_decide_otherwise_is_counted_and_int8_is_held_to_it() -> None:
    one = {"ticket_routing": [{"label": "a", "score": 0.9}, {"label": "b", "score": 0.5}], "document_qa": [SPAN]}
    other = {"ticket_routing": [{"label": "a", "score": 0.87}, {"label": "a", "score": 0.51}], "document_qa": [SPAN]}
    found = samples.apart(one, other)
    assert found["ticket_routing_decisions"] == 1
    assert found["ticket_routing_scores"] == pytest.approx(0.03)  # of the same decision alone
    assert (found["document_qa_decisions"], found["document_qa_scores"]) == (0, 0.0)
    samples.check({}, [{"data_type": "fp8", **found}])
    with pytest.raises(ValueError, match=r"ticket_routing on two devices: 1 of \d+ decided otherwise"):
        samples.check({}, [{"data_type": "int8", **found}])
    lines = samples.verdicts([{"data_type": "bf16", **found}, {"data_type": "int8", **found}])
    assert [line.split(": ")[-1] for line in lines] == ["MISSED", "MISSED", "kept", "kept"]
    assert lines[1] == "ticket_routing, int8, scores apart by up to: 0.0300 (wanted at most 0.02): MISSED"
    with pytest.raises(ValueError, match="tickets-int8: parity FAILED"):
        samples.check({"tickets-int8": {"refused": "parity FAILED"}}, [])


def test_types_and_sparse_products_become_tables_where_a_document_has_room(tmp_path: Path) -> None:
    common = {"device": {"kind": "cuda", "threads": 1}, "date": "2026-11-30T00:00:00+00:00"}
    row = {"device": "cuda", "data_type": "int8", "ticket_routing_accuracy": 92.5, "token": 0.99, "pooled": 0.998}
    types = {"settings": {"inputs": {"ticket_routing": 174}}, "archives": {"x": {"refused": "no"}}, "rows": [row]}
    both = [{"data_type": "int8", "ticket_routing_decisions": 0, "ticket_routing_scores": 0.0123}]
    results.save("types", {**common, **types, "both": both}, tmp_path)
    product = {"model": "base", "name": "up", "rows": 4096, "data_type": "fp16", "dense_us": 10.0, "sparse_us": 8.0}
    results.save(
        "sparse", {**common, "rows": [product, {**product, "name": "down", "refused": {"sparse": "why"}}]}, tmp_path
    )
    document = tmp_path / "page.md"
    rooms = "<!-- types-cuda -->\nold\n<!-- /types-cuda -->\nbetween\n<!-- sparse-cuda -->\n<!-- /sparse-cuda -->\n"
    document.write_text(f"before\n{rooms}<!-- types-cpu -->\nstays\n<!-- /types-cpu -->\n")
    for _ in range(2):  # a second time changes nothing
        tables.run(argparse.Namespace(documents=[document], results=tmp_path))
        text = document.read_text()
        assert "0.9900 / 0.9980" in text
        assert "0.0123" in text
        assert "refused: x: no" in text
        assert "| 0.80 " in text
        assert "refused: fp16, sparse: why" in text
        assert "old" not in text
        assert all(kept in text for kept in ("before\n", "between\n", "stays\n"))
        assert text.count("<!-- types-cuda -->") == 1


def test_a_task_of_a_file_says_what_it_needs() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ValueError, match="--task squad needs --data and one of --model and --archive"):
        command.run(parser.parse_args(["--task", "squad", "--model", "x"]))
