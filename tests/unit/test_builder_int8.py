"""int8 archives from small checkpoints, what is refused, and the choice of matrices."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from builder.archive import LibraryFile, build
from builder.checkpoint import load
from builder.cli import main
from builder.errors import BuildError
from builder.families import EncoderSpec
from builder.inspection import describe, read_facts
from builder.quantisation import eight_bits
from builder.quantisation.calibration import MOST_TEXTS, calibration, read_texts
from builder.quantisation.quantise import fewest_kept, most_sensitive
from builder.slots import matrices
from handler.config import SetupConfig
from tests.checkpoints import TEXTS, make_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = make_checkpoint(tmp_path / "checkpoint", "bert")
    file = folder / "model.safetensors"
    save_file({k: v / 2 if v.dim() == 2 else v for k, v in load_file(file).items()}, file, {"format": "pt"})
    return folder


def _build(folder: Path, library: Path, calibrate: Path | None = None) -> Path:
    config = SetupConfig(model_name=str(folder / "checkpoint"), name="small", compute="bf16", scheme="int8")
    libraries = [LibraryFile(library, "cpu", ["x86_64"])]
    path, _ = build(config, libraries, folder / "store", lambda step: None, None, calibrate)
    return path


def test_an_archive_says_what_was_chosen_and_reached(tmp_path: Path, checkpoint: Path, cpu_library: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    path = _build(tmp_path, cpu_library, texts)
    facts = read_facts(path)
    assert facts.data_type == "int8"
    assert facts.quantisation["calibrated_on"] == f"{len(TEXTS)} of {len(TEXTS)} texts"
    assert facts.quantisation["matrices"] == 8
    assert facts.parity["token_cosine"] >= 0.99
    assert facts.parity["pooled_cosine"] >= 0.998
    lines = list(describe(path))
    assert any(line.startswith("int8 ") and "of 8 matrices in bf16" in line for line in lines)
    assert any(line.startswith("parity ") and "worst token cosine 0.99" in line for line in lines)
    assert str(tmp_path) not in facts.model_dump_json()


def test_a_broken_scale_fails_the_gate_and_leaves_nothing(
    tmp_path: Path, checkpoint: Path, cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assemble = eight_bits.assemble

    def broken(source: Any, model: Any, weights: Any, pooling: str | None) -> Any:
        arena = weights.matrices
        _, outputs, _, _, scales, _ = _entries(arena)[1]
        arena[scales : scales + 4 * outputs].view(torch.float32)[: outputs // 4] *= 20
        return assemble(source, model, weights, pooling)

    monkeypatch.setattr(eight_bits, "assemble", broken)
    with pytest.raises(BuildError, match=r"parity FAILED: worst token cosine 0\.\d+ .* on .*no archive was written"):
        _build(tmp_path, cpu_library)
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-type", "int8", "--kind", "ths"], "int8 needs encoder fused (kind thsext); kind ths has no such"),
        (["--data-type", "int8", "--kind", "ori"], "kind ori has no such products"),
        (
            ["--data-type", "bf16", "--calibrate", "x.txt"],
            "--calibrate is for --scheme int8 or fp8 (--data-type int8 or fp8)",
        ),
        (["--data-type", "int8", "--calibrate", "nowhere.txt"], "--calibrate nowhere.txt: no such file"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    tmp_path: Path, checkpoint: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["archive", "--model", str(checkpoint), "--output", str(tmp_path / "store"), *arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "store").exists()


def test_a_setup_config_may_ask_for_int8(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"model_name": str(checkpoint), "data_type": "int8", "kind": "ths"}))
    assert main(["archive", str(file), "--output", str(tmp_path / "store")]) == 1
    assert "int8 needs encoder fused (kind thsext)" in capsys.readouterr().err


SQUAD = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}, {"question": "r"}]}]}]}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("one\n\n two \n", [("one", None), ("two", None)]),
        ('{"text": "a"}\n{"text": "b", "text_pair": "c"}\n', [("a", None), ("b", "c")]),
        ('{"text": "a"}', [("a", None)]),
        (json.dumps(SQUAD, indent=1), [("q", "c"), ("r", "c")]),
    ],
)
def test_forms_of_calibration_files(tmp_path: Path, content: str, texts: list[tuple[str, str | None]]) -> None:
    (tmp_path / "texts").write_text(content)
    assert read_texts(tmp_path / "texts") == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "the file holds no text"),
        (b"\xff\xfe", "--calibrate texts: "),
        (b'{"text": "a"}\n{"txt": "b"}', "texts, line 2: expected"),
        (b'{"text": 3}', "texts, line 1: text and text_pair must be strings"),
        (b'{"data": []}', "the file holds no text"),
    ],
)
def test_unusable_calibration_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "texts").write_bytes(content)
    with pytest.raises(BuildError, match=message):
        read_texts(tmp_path / "texts")


def test_a_long_file_is_thinned_evenly(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "texts").write_text("\n".join(f"order number {index}" for index in range(1000)))
    chosen = calibration(load(SetupConfig(model_name=str(checkpoint))), tmp_path / "texts")
    assert chosen.source == f"{MOST_TEXTS} of 1000 texts"
    assert sum(len(mask) for _, (_, _, mask) in chosen.inputs) == MOST_TEXTS


SPEC = EncoderSpec(layers=3, hidden=32, heads=2, intermediate=48)
ALL = [f"{layer}.{name}" for layer in range(3) for name in ("qkv", "attention_output", "intermediate", "output")]


def _entries(arena: Tensor) -> list[tuple[int, ...]]:
    """The table of an 8-bit arena: type, outputs, inputs and three offsets a matrix."""
    raw = arena[: 48 + 48 * int(arena[40:48].view(torch.int64))].numpy().tobytes()
    return list(struct.iter_unpack("<6q", raw[48:]))


@pytest.mark.parametrize(
    "costs",
    [
        {},
        {"1.output": 5.0},
        {"0.qkv": 0.6, "1.qkv": 0.7, "2.output": 0.8},
        {f"{layer}.qkv": 1.0 for layer in range(3)},
        dict.fromkeys(ALL, 2.0),
    ],
    ids=["none", "one", "sum", "several", "all"],
)
def test_as_few_matrices_are_kept_as_the_target_allows(costs: dict[str, float], cpu_library: Path) -> None:
    weights, vectors = _arenas()

    def error(arena: Tensor) -> float:
        rounded = [matrix for matrix, entry in zip(ALL, _entries(arena), strict=True) if entry[0] == 3]
        return sum(costs.get(matrix, 0.0) for matrix in rounded)

    def left(keep: Collection[str]) -> float:
        return sum(cost for matrix, cost in costs.items() if matrix not in keep)

    keep = most_sensitive(weights, vectors, SPEC, error, 0.9)
    assert left(keep) <= 0.9
    assert all(left([other for other in keep if other != matrix]) > 0.9 for matrix in keep)


def test_the_first_of_a_ranking_stay() -> None:
    """Of 12 two, though the target would hold without the first one."""

    def reached(keep: Collection[str]) -> float:
        return 0.0 if "1.output" in keep else 2.0

    order = ["2.qkv", "0.qkv", "0.output", "1.output"]
    ranked = [*order, *(matrix for matrix in ALL if matrix not in order)]
    assert fewest_kept(ALL, reached, 1.0, (), lambda free: ranked) == ("2.qkv", "0.qkv", "1.output")
    assert fewest_kept(ALL, reached, 1.0) == ("1.output",)
    assert fewest_kept(ALL, lambda _: 0.5, 1.0, (), lambda free: ranked) == ()


def test_where_bf16_misses_the_target_all_are_kept(cpu_library: Path) -> None:
    assert [slot.name for slot in matrices(SPEC)] == ALL
    assert most_sensitive(*_arenas(), SPEC, lambda arena: 2.0, 1.0) == tuple(ALL)


def _arenas() -> tuple[Tensor, Tensor]:
    h, i = SPEC.hidden, SPEC.intermediate
    return torch.randn(SPEC.layers * (4 * h * h + 2 * h * i)), torch.ones(2 * h + SPEC.layers * (9 * h + i))
