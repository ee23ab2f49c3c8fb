"""What programs get from an exported folder is what the archive answers."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from builder.compile import KERNELS
from builder.errors import BuildError
from builder.native.binding import Model
from builder.native.export import export_native
from tests.native.conftest import ROWS, Export, run

TYPES = {
    "fp32": {}, "bf16": {"compute": "bf16"}, "fp16": {"compute": "fp16"},
    "int8": {"compute": "bf16", "scheme": "int8"}, "fp8": {"compute": "bf16", "scheme": "fp8"},
}  # fmt: skip
HEADS = [
    ("bert", "sequence_classification"), ("bert", "token_classification"), ("bert", "question_answering"),
    ("bert", "fill_mask"), ("bert", "embedding"), ("roberta", "sequence_classification"),
    ("distilbert", "sequence_classification"), ("modernbert", "sequence_classification"),
    ("deberta-v2", "sequence_classification"),
]  # fmt: skip
VALID = np.array([[i < len(row) for i in range(max(map(len, ROWS)))] for row in ROWS])


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    # The encoder's bits are the same; the head's sums are taken in another order.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("data_type", TYPES)
def test_the_c_example_prints_the_archives_logits(export: Export, examples: Path, data_type: str) -> None:
    exported = export(**TYPES[data_type])
    lines = run(examples / "classify", exported.folder, *(",".join(map(str, row)) for row in ROWS)).splitlines()
    printed = np.array([[float(word) for word in line.split()[:-1]] for line in lines])
    (wanted,) = exported.answers(ROWS)
    close(printed, wanted)
    assert [line.split()[-1] for line in lines] == [f"LABEL_{i}" for i in wanted.argmax(1)]


@pytest.mark.parametrize(("family", "task"), HEADS)
def test_every_kind_of_head(export: Export, library: Path, family: str, task: str) -> None:
    exported = export(family, task)
    outputs = exported.answers(ROWS)
    wanted = np.stack(outputs, -1) if len(outputs) > 1 else outputs[0]
    with Model(library, exported.folder) as model:
        assert model.info.task.decode() == task
        assert bool(model.info.per_token) == (task in ("token_classification", "question_answering", "fill_mask"))
        close(model.encode(ROWS, "logits"), wanted[VALID] if model.info.per_token else wanted)


def test_normalised_embeddings_have_length_1(export: Export, library: Path) -> None:
    exported = export(task="embedding", normalize=True)
    (plain,) = exported.answers(ROWS)
    with Model(library, exported.folder) as model:
        close(model.encode(ROWS, "logits"), plain / np.linalg.norm(plain, axis=1, keepdims=True))
        close(model.encode(ROWS, "mean"), plain)


def test_both_formats_export_the_same_folder(export: Export) -> None:
    one, other = export(), export(format="export")
    assert (one.folder / "weights.safetensors").read_bytes() == (other.folder / "weights.safetensors").read_bytes()


def test_segments_count(export: Export, library: Path) -> None:
    exported = export()
    segments = [[i % 2 for i in range(len(row))] for row in ROWS]
    (wanted,) = exported.answers(ROWS, segments)
    with Model(library, exported.folder) as model:
        got = model.encode(ROWS, "logits", segments)
        close(got, wanted)
        assert np.abs(got - model.encode(ROWS, "logits")).max() > 1e-3


def test_pooled_vectors_follow_from_hidden_states(export: Export, library: Path) -> None:
    starts = np.cumsum([0, *map(len, ROWS)])
    with Model(library, export().folder) as model:
        hidden = model.encode(ROWS, "hidden")
        close(model.encode(ROWS, "first"), hidden[starts[:-1]])
        means = [hidden[a:b].mean(0) for a, b in itertools.pairwise(starts)]
        close(model.encode(ROWS, "mean"), np.stack(means))


def test_empty_sequences_and_batches(export: Export, library: Path) -> None:
    with Model(library, export().folder) as model:
        assert not model.encode([[], []], "mean").any()
        mixed = model.encode([[], ROWS[0], []], "first")
        assert not mixed[[0, 2]].any()
        np.testing.assert_array_equal(mixed[1:2], model.encode(ROWS[:1], "first"))
        assert model.encode([], "logits").shape == (0, 3)


def test_eight_threads_on_one_model(export: Export, examples: Path) -> None:
    for each in ("1", "2"):
        said = run(examples / "threads", export().folder, "250", "8", each, timeout=300)
        assert said == "8 threads x 250 batches: 0 differ, 0 threads failed\n"


def test_the_rust_example(export: Export, prefix: Path, tmp_path: Path) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("no cargo here")
    import os

    source = shutil.copytree(KERNELS / "c" / "examples" / "rust", tmp_path / "rust")
    environment = {**os.environ, "EFFT_PREFIX": str(prefix), "CARGO_TARGET_DIR": str(tmp_path / "target")}
    run("cargo", "build", "--offline", "--quiet", cwd=source, env=environment)
    said = run(tmp_path / "target/debug/efft-example", export().folder, *(",".join(map(str, row)) for row in ROWS))
    close(np.array([[float(word) for word in line.split()] for line in said.splitlines()]), export().answers(ROWS)[0])


def test_what_cannot_be_exported_is_said(export: Export, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    with pytest.raises(BuildError, match="exists; name a folder"):
        export_native(export().archive, taken)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "file"]
    with pytest.raises(BuildError, match="stock encoder"):
        export(encoder="stock")
