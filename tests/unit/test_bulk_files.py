"""Files in, files out: every format, every task, order and content of rows, and rows that are bad."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handler.columns import kinds
from handler.schemas import ClassificationAnswer
from handler.tasks import TASKS
from tests.unit.bulk_fakes import ENGINES, bulk, read, write
from tests.unit.handler_fakes import WORDS, PooledLogits, SeveralOutputs, TokenOutputs, save_archive

LABELS = ["red", "green", "blue"]
SUFFIXES = (".parquet", ".jsonl", ".csv")
ROWS = [{"id": f"{i:03}", "text": " ".join(WORDS[(i * 5 + j) % 15] for j in range(1 + i % 11))} for i in range(50)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    config = {"max_batch_tokens": 64, "stride": 4}
    return save_archive(folder, PooledLogits(3), "sequence_classification", config, labels=LABELS)


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, float]]:
    """Of an engine that is asked row by row."""
    folder = tmp_path_factory.mktemp("warm")
    assert bulk(write(folder / "in.jsonl", ROWS), folder / "out.jsonl", archive) == 0
    answers = [ENGINES[str(archive)].answer([row["text"]])[0] for row in ROWS]
    return [(answer.label, answer.score) for answer in answers]


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_every_format_into_every_other(source: str, target: str, archive: Path, expected: Any, tmp_path: Path) -> None:
    out = tmp_path / f"out{target}"
    assert bulk(write(tmp_path / f"in{source}", ROWS), out, archive) == 0
    rows = read(out)
    assert [int(row["id"]) for row in rows] == list(range(50))
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert [row["label"] for row in rows] == [label for label, _ in expected]
    assert [row["score"] for row in rows] == pytest.approx([score for _, score in expected], rel=1e-6)
    assert all(row.get("error") is None for row in rows)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("out")] == [out.name]


def test_columns_of_csv_come_back_as_they_were(archive: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b'\xef\xbb\xbfid,text,note\r\n007,"the cat, ""sat""",1e3\r\n 008,"on\na mat",\r\n')
    assert bulk(source, tmp_path / "out.csv", archive) == 0
    text = (tmp_path / "out.csv").read_text()
    assert text.startswith('"id","text","note","label","score","dropped_tokens","error"\n')
    assert '"007","the cat, ""sat""","1e3",' in text
    assert '" 008","on\na mat","",' in text


def test_bad_lines_of_json_keep_their_places(archive: Path, tmp_path: Path) -> None:
    lines = [
        b'{"text": "the cat", "id": 1}', b'{"text": "the cat"', b"", b"[1]", b'{"text": null}', b'{"id": 5}',
        b'{"text": 7}', b'{"text": "  "}', b'{"text": "\xff"}', b'{"text": "\\ud800"}', b'{"text": NaN}',
        b'{"text": "a mat", "label": "own"}', b'{"text": "a mat", "id": "x"}', b"[" * 100_000, b'{"text": "who"}',
    ]  # fmt: skip
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    assert bulk(source, tmp_path / "out.jsonl", archive, "--prefix", "x_") == 0
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == len(lines) - 1
    kinds_of_errors = [row.get("x_error", "-").partition(":")[0] for row in rows]
    assert kinds_of_errors == [
        "-", "invalid_json", "invalid_request", "empty", "empty", "invalid_request", "empty", "invalid_encoding",
        "invalid_encoding", "invalid_json", "-", "-", "invalid_json", "-",
    ]  # fmt: skip
    assert rows[1]["line"] == '{"text": "the cat"'
    assert rows[10]["label"] == "own"
    assert rows[0].keys() == {"text", "id", "x_label", "x_score", "x_dropped_tokens"}
    assert bulk(source, tmp_path / "out.parquet", archive, "--prefix", "x_", "--keep", "id") == 0
    table = read(tmp_path / "out.parquet")
    assert [row["x_label"] for row in table] == [row.get("x_label") for row in rows]
    assert [row["id"] for row in table] == ["1", *[None] * 3, "5", *[None] * 6, "x", None, None]


def test_a_field_that_changes_its_type_late_is_a_problem_of_its_row(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.bulk.sources.SAMPLE", 2)
    rows = [{"text": "who", "id": value} for value in (1, 2, "x", 2**80, 5)]
    assert bulk(write(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet", archive) == 0
    table = read(tmp_path / "out.parquet")
    assert [row["id"] for row in table] == [1, 2, None, None, 5]
    assert len({row["label"] for row in table}) == 1
    assert ["id does not fit the type int64" in (row["error"] or "") for row in table] == [False] * 2 + [True] * 2 + [
        False
    ]


def test_a_line_with_an_answers_own_name_is_not_overwritten(archive: Path, tmp_path: Path) -> None:
    rows = [{"text": "the cat"}] * 1500 + [{"text": "the cat", "label": "own"}]
    assert bulk(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", archive) == 0
    last = read(tmp_path / "out.jsonl")[-1]
    assert last["label"] == "own"
    assert "--prefix" in last["error"]


def test_bad_rows_of_csv_keep_their_places(archive: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b"id,text\n0,a,b\n1,the cat\n2\n3,\n4,\xff\n\xff,a mat\n6,who\n7,a,b\n8,a,b\n")
    for target in ("out.csv", "out.parquet", "out.jsonl"):
        assert bulk(source, tmp_path / target, archive) == 0
        rows = read(tmp_path / target)
        errors = [(row.get("error") or "-").partition(":")[0] for row in rows]
        bad, fine = "invalid_request", "-"
        assert errors == [bad, fine, bad, "empty", "invalid_encoding", "invalid_encoding", fine, bad, bad]
        assert [row.get("label") is not None for row in rows] == [error == fine for error in errors]


def test_many_bad_rows_of_csv_across_blocks(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.bulk.sources.BLOCK", 64)
    source = tmp_path / "in.csv"
    source.write_text("id,text\n" + "".join(f"{i},the{',x' * (i % 3 == 0)}\n" for i in range(300)))
    assert bulk(source, tmp_path / "out.parquet", archive) == 0
    rows = read(tmp_path / "out.parquet")
    assert [row["error"] is None for row in rows] == [i % 3 != 0 for i in range(300)]
    assert [row["id"] for row in rows] == [None if i % 3 == 0 else str(i) for i in range(300)]


def test_nulls_and_types_of_parquet(archive: Path, tmp_path: Path) -> None:
    texts = ["the cat", None, "", "a mat"]
    table = pa.table({
        "text": pa.array(texts).dictionary_encode(),
        "when": pa.array([0, 1, None, 3], pa.timestamp("us", "UTC")),
        "raw": pa.array([b"\x00", b"\xff", None, b""]),
        "map": pa.array([{"a": 1.5}, None, {"a": float("nan")}, {"a": None}]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    for target in ("out.parquet", "out.jsonl", "out.csv"):
        assert bulk(tmp_path / "in.parquet", tmp_path / target, archive, "--column", "text") == 0
    kept = pq.read_table(tmp_path / "out.parquet")
    assert kept.select(table.schema.names).to_pylist()[1] == table.to_pylist()[1]
    assert [error and error[:5] for error in kept["error"].to_pylist()] == [None, "empty", "empty", None]
    lines = read(tmp_path / "out.jsonl")
    assert lines[2]["map"] == {"a": None}
    assert lines[0]["raw"] == "AA=="
    assert (tmp_path / "out.csv").read_text().count("\n") == 5


def test_a_folder_of_files_and_packed_ones(archive: Path, expected: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "b.parquet", ROWS[20:])
    write(folder / "a.parquet", ROWS[:20])
    (folder / "_SUCCESS").touch()
    assert bulk(folder, tmp_path / "out", archive) == 0
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [int(row["id"]) for row in rows] == list(range(50))
    assert [row["label"] for row in rows] == [label for label, _ in expected]
    packed = tmp_path / "in.csv.gz"
    packed.write_bytes(gzip.compress(write(tmp_path / "in.csv", ROWS).read_bytes()))
    assert bulk(packed, tmp_path / "out.parquet", archive, "--keep") == 0
    rows = read(tmp_path / "out.parquet")
    assert rows[0].keys() == {"label", "score", "dropped_tokens", "error"}
    assert [row["label"] for row in rows] == [label for label, _ in expected]


def test_files_without_rows(archive: Path, tmp_path: Path) -> None:
    for source in (".parquet", ".csv"):
        (tmp_path / "in.csv").write_text("id,text\n")
        pq.write_table(pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}),
                       tmp_path / "in.parquet")  # fmt: skip
        for target in SUFFIXES:
            out = tmp_path / f"from{source[1:]}{target}"
            assert bulk(tmp_path / f"in{source}", out, archive) == 0
            assert read(out) == []


TASK_CASES: dict[str, tuple[Any, list[dict[str, Any]], list[str]]] = {
    "sequence_classification": (PooledLogits(3), [{"text": "the cat", "text_pair": "a mat"}, {"text": "who"}], []),
    "question_answering": (TokenOutputs(2), [{"question": "who", "context": "the cat sat"}], []),
    "token_classification": (TokenOutputs(1, 3), [{"text": "the cat sat"}], []),
    "embedding": (PooledLogits(4), [{"text": "the cat"}, {"text": "a"}], ["--option", "normalize=true"]),
    "rerank": (PooledLogits(1), [{"query": "who", "texts": ["the cat", "a mat"]}], ["--option", "sort=false"]),
    "fill_mask": (TokenOutputs(1, 77), [{"text": "the [MASK] sat"}], ["--option", "top_k=2"]),
    "zero_shot_classification": (
        PooledLogits(3), [{"text": "the cat", "candidate_labels": ["a mat", "it"]}], ["--option", "multi_label=true"],
    ),
    "sparse_embedding": (PooledLogits(77), [{"text": "the cat"}, {"text": "a"}], ["--option", "top_k=3"]),
    "multi_vector_embedding": (TokenOutputs(1, 4), [{"text": "the cat"}, {"text": "a"}], []),
    "hybrid_embedding": (SeveralOutputs(4), [{"text": "the cat"}, {"text": "a"}], ["--option", "top_k=3"]),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("target", SUFFIXES)
def test_every_task_answers_as_its_engine_does(task: str, target: str, tmp_path: Path) -> None:
    module, requests, arguments = TASK_CASES[task]
    folder = save_archive(tmp_path / "archive", module, task, {"stride": 4})
    rows = [{**request, "id": place} for place, request in enumerate([*requests, {}, *requests])]
    rows[len(requests)] = dict.fromkeys(rows[0])
    out = tmp_path / f"out{target}"
    assert bulk(write(tmp_path / "in.parquet", rows), out, folder, *arguments) == 0
    engine = ENGINES[str(folder)]
    options = dict(pair.split("=") for pair in arguments[1:])
    answers = engine.answer([{**request, **{k: json.loads(v) for k, v in options.items()}} for request in requests])
    columns = kinds(engine.task.answer)
    got = read(out)
    assert got[len(requests)]["error"].startswith("empty")
    for row, answer in zip([*got[: len(requests)], *got[len(requests) + 1 :]], [*answers, *answers], strict=True):
        assert not row.get("error")
        for name, value in answer.model_dump(exclude_unset=True).items():
            if target == ".csv" and columns[name] in ("nested", "vector"):
                row[name] = json.loads(row[name])
            if columns[name] == "vector":
                assert row[name] == pytest.approx(value, rel=1e-6)
            elif target != ".csv" or value != "":
                assert _without_nulls(row[name]) == _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def test_a_vector_is_a_fixed_size_list_of_float32(tmp_path: Path) -> None:
    folder = save_archive(tmp_path / "archive", PooledLogits(4), "embedding", {})
    rows = [{"text": None}, {"text": "the cat"}]
    assert bulk(write(tmp_path / "in.parquet", rows), tmp_path / "out.parquet", folder) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 4)
    assert table["embedding"].null_count == 1


def test_one_text_to_a_query_is_a_score(tmp_path: Path) -> None:
    folder = save_archive(tmp_path / "archive", PooledLogits(1), "rerank", {})
    rows = [{"q": "who", "t": "the cat"}, {"q": None, "t": "a mat"}, {"q": "who", "t": "a mat"}]
    assert bulk(write(tmp_path / "in.csv", rows), tmp_path / "out.parquet", folder, "--column", "q", "t") == 0
    scores = [row["score"] for row in read(tmp_path / "out.parquet")]
    (answer,) = ENGINES[str(folder)].answer([{"query": "who", "texts": ["the cat", "a mat"], "sort": False}])
    assert scores == [pytest.approx(answer.results[0].score), None, pytest.approx(answer.results[1].score)]


def test_classification_columns_are_the_schemas() -> None:
    assert list(kinds(ClassificationAnswer))[:2] == ["label", "score"]
