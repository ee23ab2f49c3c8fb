"""Building archives from small checkpoints, and refusing to."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builder.archive import LibraryFile, build
from builder.cli import main
from builder.compile import ROOT
from builder.errors import BuildError
from builder.inspection import describe, read_facts
from handler.config import SetupConfig
from tests import fresh
from tests.checkpoints import make_checkpoint


def _build(folder: Path, library: Path, **keys: object) -> Path:
    config = SetupConfig.model_validate({"model_name": str(folder / "checkpoint"), "name": "small", **keys})
    path, _ = build(config, [LibraryFile(library, "cpu", ["x86_64"])], folder / "store", lambda step: None)
    return path


@pytest.mark.parametrize("kind", ["ori", "ths", "thsext"])
def test_an_archive_of_each_kind(tmp_path: Path, cpu_library: Path, kind: str) -> None:
    make_checkpoint(tmp_path / "checkpoint", "bert")
    path = _build(tmp_path, cpu_library, kind=kind)
    facts = read_facts(path)
    assert (facts.name, facts.kind, facts.task, facts.labels) == (
        "small", kind, "sequence_classification", ["LABEL_0", "LABEL_1", "LABEL_2"],
    )  # fmt: skip
    assert facts.parity["passed"]
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        texts = {n: archive.read(n).decode() for n in names if n.endswith((".json", ".yaml", ".py"))}
    assert {"MAR-INF/MANIFEST.json", "model-config.yaml", "index_to_name.json", "tokenizer.json", "vocab.txt"} <= names
    assert {"service.py", "handler/predictor.py", "setup_config.json"} <= names
    assert ("libefft_cpu.so" in names) == (kind == "thsext")
    assert json.loads(texts["index_to_name.json"])["2"] == "LABEL_2"
    assert not [name for name, text in texts.items() if str(tmp_path) in text], "a path of the building machine"
    assert any(line.startswith("parity") for line in describe(path))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, cpu_library: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", "roberta", "question_answering")
    archives = []
    for _ in range(2):  # in processes of their own, as users build: torch.jit numbers types within a process
        options = ["--model", str(tmp_path / "checkpoint"), "--output", str(tmp_path / "store"), "--device", "cpu"]
        assert fresh.run("builder", "archive", *options).returncode == 0
        archives.append((tmp_path / "store" / "checkpoint.mar").read_bytes())
    assert archives[0] == archives[1]
    assert str(ROOT).encode() not in archives[0], "a path of the building machine"


def test_a_failed_gate_leaves_no_archive(tmp_path: Path, cpu_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "checkpoint", "bert")
    from builder import models

    packed = models.packed_model

    def broken(*arguments: object, **keys: object) -> torch.nn.Module:
        model = packed(*arguments, **keys)
        start = 2 * 64 + 4 * 64  # the first layer's attention LayerNorm
        model.encoder.vectors[start : start + 64] *= 1.05
        return model

    monkeypatch.setattr(models, "packed_model", broken)
    with pytest.raises(BuildError, match=r"parity FAILED: error \d.*worst on .*no archive was written"):
        _build(tmp_path, cpu_library)
    assert list((tmp_path / "store").iterdir()) == []


def test_missing_head_weights_are_refused(tmp_path: Path, cpu_library: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "bert")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("classifier")}, folder / "model.safetensors")
    with pytest.raises(BuildError, match="lacks weights for sequence_classification: classifier"):
        _build(tmp_path, cpu_library)


def test_another_task_than_the_architecture_says_is_possible_only_with_weights(
    tmp_path: Path, cpu_library: Path
) -> None:
    make_checkpoint(tmp_path / "checkpoint", "bert")
    with pytest.raises(BuildError, match="lacks weights for question_answering"):
        _build(tmp_path, cpu_library, task="question_answering")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "not supported; supported: albert, bert, "),
        ({"architectures": ["BertForNextSentencePrediction"]}, "tells no task"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ({"num_attention_heads": 64}, "head size 64/64 is not supported"),
    ],
)
def test_what_cannot_be_served_is_said(
    tmp_path: Path, change: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    assert main(["archive", "--model", str(folder), "--output", str(tmp_path / "store"), "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "store").glob("*"))


def test_a_missing_folder_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["archive", "--model", str(tmp_path / "nowhere"), "--output", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 1
    assert "no folder" in capsys.readouterr().err.splitlines()[-1]


def test_inspect_refuses_what_is_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.mar").write_bytes(b"no zip")
    assert main(["inspect", str(tmp_path / "x.mar")]) == 1
    assert "not an archive made by this builder" in capsys.readouterr().err


def test_a_replaced_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(tmp_path / "mine", "bert")
    target = tmp_path / "store" / "mine.mar"
    command = ["archive", "--model", str(folder), "--output", str(target.parent), "--device", "cpu", "--kind", "ori"]
    assert main(command) == 0
    first = capsys.readouterr()  # with the bar of the test's own saving
    assert "replaces" not in first.out + first.err
    assert main([*command, "--task", "feature-extraction", "--compute", "bf16"]) == 0
    said = capsys.readouterr()
    assert f"replaces {target} (sequence_classification, fp32)" in said.out.splitlines()
    assert said.out.splitlines()[-1] == str(target)
    notes = [line for line in said.err.splitlines() if "note:" in line]
    assert notes == [said.err.splitlines()[0]]
    assert notes[0].startswith("note: mine: no modules.json: pooled by the mean")
    assert "\r" not in said.err
    target.write_bytes(b"no zip")
    assert main(command) == 0
    assert f"replaces {target} (no archive made by this builder)" in capsys.readouterr().out.splitlines()


def test_missing_weights_are_said_before_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(tmp_path / "mine", "bert")
    (folder / "model.safetensors").unlink()
    capsys.readouterr()
    command = ["archive", "--model", str(folder), "--output", str(tmp_path / "store"), "--device", "cpu"]
    assert main([*command, "--task", "embedding"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("builder: mine: no model.safetensors or pytorch_model.bin")
