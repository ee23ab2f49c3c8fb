"""Every older spelling means what the newer one says: in setup configs, options, make's variables, archives."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from builder import cli, make
from builder.archive import LibraryFile, write_files
from builder.checkpoint import load
from builder.errors import BuildError
from builder.inspection import read_facts
from builder.mar import replace_files, rewrite
from handler.archive import ArchiveFacts
from handler.config import ConfigError, SetupConfig
from handler.spellings import DATA_TYPES, FILES, KINDS, TASKS, data_type_of, kind_of, modern_facts, older_facts
from tests.checkpoints import make_checkpoint

OF_0_1 = sorted((Path(__file__).parents[1] / "parity" / "archives_0_1").glob("*/archive.json"))
SAVED = {
    "ori": [{"save_mode": "pretrained"}, {"save_mode": "pretrained", "FasterTransformer": False}],
    "ths": [{"save_mode": "torchscript"}, {"save_mode": "torchscript", "FasterTransformer": False}],
    "thsext": [{"save_mode": "torchscript", "FasterTransformer": True}, {"FasterTransformer": "true"}, {}],
}
"""The parent example's keys for each kind."""


def older_settings() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each way in which settings were said, and how they are said now."""
    found = []
    for (kind, (encoder, form)), (data_type, (compute, scheme)) in itertools.product(KINDS.items(), DATA_TYPES.items()):
        if scheme != "none" and encoder != "fused":
            continue
        now = {"task": "rerank", "encoder": encoder, "format": form, "compute": compute, "scheme": scheme}
        ways: list[dict[str, Any]] = [{"kind": kind}, *SAVED[kind]]
        found += [({"mode": "rerank", "data_type": data_type, **way}, now) for way in ways]
    return found


@pytest.mark.parametrize(("older", "newer"), older_settings())
def test_older_settings_are_the_newer_ones(older: dict[str, Any], newer: dict[str, Any]) -> None:
    config, expected = (SetupConfig.model_validate({"model_name": "m", **keys}) for keys in (older, newer))
    said_by_parent = {"save_mode", "FasterTransformer"}
    assert config.model_dump(exclude=said_by_parent) == expected.model_dump(exclude=said_by_parent)
    assert {config.kind, config.data_type} <= {*KINDS, *DATA_TYPES}
    mixed = {"model_name": "m", "task": "rerank", "mode": "rerank", **newer}
    assert SetupConfig.model_validate(mixed) == expected


@pytest.mark.parametrize("kind", ["ths", "thsext"])
def test_a_kind_goes_with_the_format_that_its_project_did_not_know(kind: str) -> None:
    config = SetupConfig.model_validate({"model_name": "m", "kind": kind, "format": "export"})
    assert (config.encoder, config.format, config.kind) == (KINDS[kind][0], "export", kind)
    with pytest.raises(ValueError, match="kind ori contradicts format export"):
        SetupConfig.model_validate({"model_name": "m", "kind": "ori", "format": "export"})


@pytest.mark.parametrize(
    ("word", "task"),
    [
        ("text-classification", "sequence_classification"),
        ("text_classification", "sequence_classification"),
        ("sentiment-analysis", "sequence_classification"),
        ("token-classification", "token_classification"),
        ("ner", "token_classification"),
        ("question-answering", "question_answering"),
        ("feature-extraction", "embedding"),
        ("sentence-similarity", "embedding"),
        ("fill-mask", "fill_mask"),
        ("Zero-Shot-Classification", "zero_shot_classification"),
        ("text-ranking", "rerank"),
        *((task, task) for task in TASKS),
    ],
)
def test_pipelines_names_are_tasks(word: str, task: str) -> None:
    for key in ("task", "mode"):
        assert SetupConfig.model_validate({"model_name": "m", key: word}).task == task
        options = cli._parser().parse_args(["archive", "--model", "m", f"--{key}", word])
        assert cli._setup_config(options).task == task


def test_an_unknown_task_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="Input should be 'sequence_classification', "):
        SetupConfig.model_validate({"model_name": "m", "task": "summarization"})
    with pytest.raises(ValueError, match="mode: 'summarization' is none of sequence_classification, "):
        SetupConfig.model_validate({"model_name": "m", "mode": "summarization"})


def test_older_spellings_give_the_same_archive(tmp_path: Path, cpu_library: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "bert")
    ways: list[dict[str, Any]] = [
        {"mode": "sequence_classification", "kind": "thsext", "data_type": "bf16"},
        {"task": "sequence_classification", "encoder": "fused", "format": "torchscript", "compute": "bf16"},
        {"mode": "sequence_classification", "save_mode": "torchscript", "FasterTransformer": True, "data_type": "bf16"},
    ]
    written = []
    for index, way in enumerate(ways):
        config = SetupConfig.model_validate({"model_name": str(folder), **way})
        stage = tmp_path / str(index)
        stage.mkdir()
        library = LibraryFile(cpu_library, "cpu", ["x86_64"])
        written.append(write_files(stage, "one", config, load(config), [library], lambda step: None).content())
    assert written[0] == written[1] == written[2]
    facts = json.loads(written[0])
    assert facts["model"] == {"format": "torchscript", "file": "model.pt", "devices": ["cpu"], "packed": True}
    assert (facts["encoder"], facts["compute"], facts["scheme"], facts["format"]) == ("fused", "bf16", "none", 2)
    assert not {"mode", "kind", "data_type"} & facts.keys()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mode": "translation"}, "mode: 'translation' is none of sequence_classification, "),
        ({"task": "translation"}, "task: "),
        ({"kind": "onnx"}, "kind: 'onnx' is none of ori, ths, thsext"),
        ({"kind": ["ths"]}, "kind: ['ths'] is none of"),
        ({"data_type": "int4"}, "data_type: 'int4' is none of fp32, bf16, fp16, int8"),
        ({"mode": "rerank", "task": "embedding"}, "mode rerank contradicts task embedding"),
        ({"kind": "ths", "encoder": "fused"}, "kind ths contradicts encoder fused"),
        ({"data_type": "int8", "compute": "fp16"}, "data_type int8 contradicts compute fp16"),
        ({"scheme": "int8", "compute": "fp32"}, "scheme int8 computes in bf16 or fp16, not fp32"),
        ({"format": "transformers", "encoder": "fused"}, "format transformers holds the stock encoder"),
        ({"save_mode": "pretrained", "kind": "ths"}, "save_mode pretrained contradicts format torchscript (kind ths)"),
        ({"encodr": "fused"}, "unknown key 'encodr', did you mean 'encoder'"),
    ],
)
def test_what_contradicts_itself_is_named_by_the_users_word(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"model_name": "m", **keys}))
    with pytest.raises(ConfigError) as caught:
        SetupConfig.load(tmp_path / "a.json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scheme_or_a_format_says_what_it_needs() -> None:
    quantised = SetupConfig.model_validate({"model_name": "m", "scheme": "int8"})
    assert (quantised.compute, quantised.data_type) == ("bf16", "int8")
    original = SetupConfig.model_validate({"model_name": "m", "format": "transformers"})
    assert (original.encoder, original.kind) == ("stock", "ori")


@pytest.mark.parametrize(
    ("arguments", "kind", "data_type"),
    [
        (["--kind", "ths"], "ths", "int8"),
        (["--encoder", "stock", "--data-type", "fp16"], "ths", "fp16"),
        (["--kind=ori", "--scheme=none", "--compute=fp32"], "ori", "fp32"),
        (["--format=transformers", "--data-type=fp32"], "ori", "fp32"),
    ],
)
@pytest.mark.parametrize("file", [{"kind": "thsext", "data_type": "int8"}, {"encoder": "fused", "scheme": "int8"}])
def test_options_win_over_the_file_in_either_spelling(
    tmp_path: Path, file: dict[str, Any], arguments: list[str], kind: str, data_type: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"model_name": "m", "FasterTransformer": None, **file}))
    options = cli._parser().parse_args(["archive", str(tmp_path / "a.json"), *arguments])
    config = cli._setup_config(options)
    assert (config.kind, config.data_type) == (kind, data_type)


def _configured(*arguments: str) -> SetupConfig:
    return cli._setup_config(cli._parser().parse_args(["archive", "--model=m", *arguments]))


def test_one_adapter_is_merged_and_several_have_names(tmp_path: Path) -> None:
    assert _configured("--adapter", "folder").adapter == "folder"
    (tmp_path / "r=8").mkdir()
    odd = _configured("--adapter", str(tmp_path / "r=8"))
    assert (odd.adapter, odd.adapters) == (str(tmp_path / "r=8"), {})
    several = _configured("--adapter", "b=two", "--adapter", "a=some/one=1")
    assert several.adapter is None
    assert list(several.adapters.items()) == [("b", "two"), ("a", "some/one=1")]
    assert _configured(*make.options({"ADAPTER": "b=two a=one"}, ("ADAPTER",))).adapters == {"b": "two", "a": "one"}
    assert _configured(*make.options({"ADAPTER": "my adapter"}, ("ADAPTER",))).adapter == "my adapter"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "a=one", "--adapter", "two"], "--adapter two: of several each needs a name"),
        (["--adapter", "a=one", "--adapter", "a=two"], "--adapter a: two have this name"),
        (["--adapter", "a=one", "--adapter", "b=two", "--kind", "ori"], "adapters to choose from need a traced model"),
    ],
)
def test_adapters_that_cannot_be_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        _configured(*arguments)


def test_make_takes_both() -> None:
    older = make.options({"MODE": "rerank", "KIND": "ths", "DTYPE": "bf16"}, tuple(make._OPTIONS))
    newer = make.options({"TASK": "rerank", "ENCODER": "stock", "COMPUTE": "bf16"}, tuple(make._OPTIONS))
    configs = [
        cli._setup_config(cli._parser().parse_args(["archive", "--model=m", *given])) for given in (older, newer)
    ]
    assert configs[0].model_dump() == configs[1].model_dump()


@pytest.mark.parametrize("path", OF_0_1, ids=lambda path: path.parent.name)
def test_facts_of_0_1_are_read_in_the_newer_words(path: Path) -> None:
    raw = json.loads(path.read_text())
    facts = ArchiveFacts.load(path)
    assert (facts.kind, facts.data_type, facts.sizes.hidden) == (
        raw["mode"],
        raw["data_type"],
        raw["encoder"]["hidden"],
    )
    assert (facts.encoder, facts.model.file, facts.model.devices) == ("fused", "model.pt", ["cpu"])
    assert facts.quantisation.get("kept", []) == raw["quantisation"].get("bf16", [])
    written = json.loads(facts.content())
    assert {key: written[key] for key in raw} == raw
    assert not {"compute", "scheme", "model", "sizes"} & written.keys()


def test_every_kind_and_type_goes_there_and_back() -> None:
    raw = json.loads(OF_0_1[0].read_text())
    for kind, data_type, task in itertools.product(KINDS, DATA_TYPES, TASKS):
        older = {**raw, "mode": kind, "data_type": data_type, "task": task}
        newer = modern_facts(older)
        assert (
            kind_of(newer["encoder"], newer["model"]["format"]),
            data_type_of(newer["compute"], newer["scheme"]),
        ) == (
            kind,
            data_type,
        )
        assert newer["model"]["file"] == FILES[newer["model"]["format"]]
        assert newer["model"]["devices"] == (["cpu"] if "thsext" in kind else ["cpu", "cuda"])
        assert older_facts(newer) == older


def test_an_archive_of_0_1_that_is_changed_keeps_the_words_of_its_own_handler(tmp_path: Path) -> None:
    import zipfile

    raw = json.loads(OF_0_1[0].read_text())
    archive = tmp_path / "old.mar"
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as packed:
        packed.writestr("archive.json", json.dumps(raw))
        packed.writestr("model-config.yaml", "minWorkers: 1\n")
    rewrite(tmp_path / "raw.zip", archive)
    facts = read_facts(archive)
    replace_files(
        archive, {"model-config.yaml": b"minWorkers: 2\n"}, facts.model_copy(update={"tuned": {"workers": 2}})
    )
    with zipfile.ZipFile(archive) as packed:
        now = json.loads(packed.read("archive.json"))
    assert (now["mode"], now["encoder"], now["data_type"]) == (raw["mode"], raw["encoder"], raw["data_type"])
    assert now["tuned"] == {"workers": 2}


def test_a_model_file_is_a_name_within_the_archive() -> None:
    facts = modern_facts(json.loads(OF_0_1[0].read_text()))
    facts["model"]["file"] = "../model.pt"
    with pytest.raises(ValueError, match="model.file"):
        ArchiveFacts.model_validate(facts)
