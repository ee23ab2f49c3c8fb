"""Broken inputs through every command: one line each, no trace, nothing written."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builder import cli
from builder.compile import ROOT
from handler import doctor
from tests.checkpoints import make_checkpoint

Break = Callable[[Path], Any]


def _config(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def _write(name: str, content: bytes | str) -> Break:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def _remove(*names: str) -> Break:
    return lambda folder: [(folder / name).unlink() for name in names]


def _truncate(name: str) -> Break:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    def changed(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return changed


def _pickled(content: Any) -> Break:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return change


def _both(*changes: Break) -> Break:
    return lambda folder: [change(folder) for change in changes]


class Runs:
    """What a pickle can do: unpickled, it would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/efft-was-run", "w"))


DEEP = "[" * 100_000
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
FIRST = "bert.encoder.layer.0.attention.self.query.weight"
TOKENIZER = json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": -5})

CHECKPOINTS: dict[str, tuple[Break, str]] = {
    # config.json
    "no config": (_remove("config.json"), "no config.json"),
    "config empty": (_write("config.json", ""), "config.json is empty"),
    "config no JSON": (_write("config.json", "{layers: 2"), "config.json is not JSON"),
    "config a list": (_write("config.json", "[1]"), "config.json holds a list"),
    "config nested": (_write("config.json", DEEP), "config.json is nested too deeply"),
    "config Latin-1": (_write("config.json", b'{"a": "\xe9"}'), "config.json is not JSON"),
    "config a pointer": (_write("config.json", POINTER), "Git LFS pointer"),
    "no heads": (_config(num_attention_heads=0), "num_attention_heads is 0"),
    "heads that do not divide": (_config(num_attention_heads=3), "hidden_size 64 is not a multiple"),
    "negative heads": (_config(num_attention_heads=-2), "num_attention_heads is -2"),
    "heads as text": (_config(num_attention_heads="2"), "num_attention_heads is '2'"),
    "heads as a fraction": (_config(num_attention_heads=2.0), "num_attention_heads is 2.0"),
    "heads nested": (_config(num_attention_heads={"a": 1}), "num_attention_heads is {'a': 1}"),
    "depth 100,000": (_config(num_hidden_layers=100_000), "num_hidden_layers is 100000"),
    "10^6 layers": (_config(num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
    "no layers": (_config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "hidden beyond memory": (_config(hidden_size=2**30, num_attention_heads=2**24), "hidden_size"),
    "vocabulary beyond memory": (_config(vocab_size=10**12), "vocab_size is 1000000000000"),
    "another vocabulary": (_config(vocab_size=10**6), "vocab_size 1000000"),
    "intermediate beyond 64 bits": (_config(intermediate_size=10**30), "intermediate_size is 1000"),
    "other positions": (_config(max_position_embeddings=10), "max_position_embeddings 10"),
    "epsilon 0": (_config(layer_norm_eps=0), "layer_norm_eps is 0"),
    "epsilon as text": (_config(layer_norm_eps="small"), "layer_norm_eps is 'small'"),
    "pad beyond the table": (_config(pad_token_id=10**6), "pad_token_id is 1000000"),
    "pad negative": (_config(pad_token_id=-1), "pad_token_id is -1"),
    "activation a list": (_config(hidden_act=["gelu"]), "hidden_act is ['gelu']"),
    "model type a number": (_config(model_type=7), "model_type is 7"),
    "model type unknown": (_config(model_type="bort", auto_map={"AutoModel": "m.M"}), "which is never run"),
    "decoder": (_config(is_decoder=True), "is_decoder is set"),
    "cross-attention": (_config(add_cross_attention=True), "add_cross_attention is set"),
    "causal": (_config(architectures=["BertLMHeadModel"]), "decoders are not served"),
    "architectures a text": (_config(architectures="BertModel"), "architectures is 'BertModel'"),
    "no architectures": (_config(architectures=...), "tells no task"),
    "quantised": (_config(quantization_config={"quant_method": "bnb"}), "quantised by bnb, which is not read"),
    "fewer layers than the weights": (_config(num_hidden_layers=1), "num_hidden_layers is 1, but the weights have 2"),
    "more layers than the weights": (_config(num_hidden_layers=3), "lacks weights"),
    # weights
    "no weights": (_remove("model.safetensors"), "no model.safetensors or pytorch_model.bin"),
    "TensorFlow only": (_both(_remove("model.safetensors"), _write("tf_model.h5", "x")), "only TensorFlow"),
    "weights truncated": (_truncate("model.safetensors"), "model.safetensors is damaged"),
    "weights empty": (_write("model.safetensors", ""), "model.safetensors is empty"),
    "weights noise": (_write("model.safetensors", os.urandom(5000)), "model.safetensors is damaged"),
    "weights a pointer": (_write("model.safetensors", POINTER), "Git LFS pointer"),
    "a pickle that runs": (_pickled({"w": Runs()}), "more than tensors"),
    "a pickle of no tensors": (_pickled({"w": 3}), "holds no named tensors"),
    "a pickled list": (_pickled([torch.zeros(1)]), "holds no named tensors"),
    "a pickle cut": (_both(_pickled({"w": torch.zeros(99)}), _truncate("pytorch_model.bin")), "is damaged"),
    "a plain pickle": (
        _both(_remove("model.safetensors"), _write("pytorch_model.bin", pickle.dumps({"a": 1}))), "pytorch_model.bin",
    ),
    "a shard missing": (
        _both(
            _remove("model.safetensors"),
            _write("model.safetensors.index.json", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        ),
        "is missing",
    ),
    "an index outside": (
        _both(
            _remove("model.safetensors"),
            _write("model.safetensors.index.json", '{"weight_map": {"a": "sub/x.safetensors"}}'),
        ),
        "which is no file beside it",
    ),
    "NaN": (_weights(lambda s: s[FIRST][0].fill_(float("nan"))), f"{FIRST!r} holds 64 values"),
    "infinite": (_weights(lambda s: s[FIRST][0, :1].fill_(float("-inf"))), f"{FIRST!r} holds 1 values"),
    "whole numbers": (_weights(lambda s: s.update({FIRST: s[FIRST].to(torch.int8)})), "is int8"),
    "another shape": (_weights(lambda s: s.update({FIRST: s[FIRST][:-1].clone()})), "is [63, 64]"),
    "a weight too many": (_weights(lambda s: s.update({f"{FIRST}_lora": torch.zeros(2)})), "has no place for"),
    "a weight missing": (_weights(lambda s: s.pop(FIRST)), "lacks weights"),
    "adapter without weights": (_write("adapter_config.json", '{"peft_type": "LORA"}'), "adapter_config.json without"),
    # tokenizer
    "no tokenizer": (_remove("vocab.txt"), "no tokenizer files"),
    "vocabulary empty": (_write("vocab.txt", ""), "vocab.txt is empty"),
    "vocabulary too long": (
        lambda f: (f / "vocab.txt").write_text((f / "vocab.txt").read_text() + "extra\n"), "the embedding table has",
    ),
    "vocabulary of one word": (_write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n"), "answers [UNK] to"),
    "tokenizer.json noise": (_write("tokenizer.json", "{}"), "tokenizer"),
    "tokenizer.json nested": (_write("tokenizer.json", DEEP), "tokenizer"),
    "max length negative": (_write("tokenizer_config.json", TOKENIZER), "model_max_length is -5"),
    "a tokenizer class of others": (
        _write("tokenizer_config.json", '{"tokenizer_class": "XLMRobertaTokenizer"}'), "tokenizer",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sound") / "checkpoint", "bert")


def _one_line(text: str) -> str:
    """The message: the last line behind the progress bar. Fails on a trace, and on a message of several lines."""
    assert "Traceback" not in text
    assert '  File "' not in text
    messages = [line for line in text.replace("\r", "\n").splitlines() if line.startswith(("builder:", "not servable"))]
    assert len(messages) == 1, text
    return messages[0]


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_a_broken_checkpoint_is_said_in_one_line(
    tmp_path: Path, sound: Path, cpu_library: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    change, message = CHECKPOINTS[what]
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    change(folder)
    store = tmp_path / "store"
    assert cli.main(["archive", "--model", str(folder), "--output", str(store), "--device", "cpu"]) == 1
    said = _one_line(capsys.readouterr().err)
    assert message in said
    assert "unexpected" not in said
    assert not list(store.glob("*")), "something was left"
    assert not Path("/tmp/efft-was-run").exists()


def _zip(entries: dict[str, str]) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)

    return write


def _cut_zip(path: Path) -> None:
    _zip({"archive.json": "{}" * 500})(path)
    _truncate(path.name)(path.parent)


ARCHIVES: dict[str, Callable[[Path], Any]] = {
    "absent": lambda path: None,
    "an empty folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(os.urandom(3000)),
    "cut": _cut_zip,
    "no archive.json": _zip({"a.txt": "a"}),
    "archive.json no JSON": _zip({"archive.json": "{"}),
    "archive.json nested": _zip({"archive.json": DEEP}),
    "archive.json a list": _zip({"archive.json": "[]"}),
    "archive.json of another kind": _zip({"archive.json": '{"task": "cooking"}'}),
    "a path too long": lambda path: None,
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_a_broken_archive_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    path = tmp_path / ("x" * 300 if what == "a path too long" else "broken.mar")
    ARCHIVES[what](path)
    assert cli.main(["inspect", str(path)]) == 1
    _one_line(capsys.readouterr().err)
    out = io.StringIO()
    assert doctor.main([str(path)], out) in (1, 70)
    _one_line(out.getvalue() + capsys.readouterr().err.replace("doctor:", "builder:"))


CONFIGS: dict[str, tuple[str, str]] = {
    "empty": ("", "config.json"),
    "no JSON": ("{", "config.json"),
    "a list": ("[]", "config.json"),
    "nested": (DEEP, "config.json"),
    "an unknown key": ('{"model_name": "m", "max_lenght": 3}', "did you mean 'max_length'"),
    "a key of the wrong kind": ('{"model_name": "m", "batch_size": {"a": 1}}', "batch_size"),
    "a negative length": ('{"model_name": "m", "max_length": -1}', "max_length"),
    "no model": ('{"max_length": 3}', "model_name"),
    "a name with a slash": ('{"model_name": "m", "name": "a/b"}', "name"),
    "a model with a null byte": ('{"model_name": "a\\u0000b"}', "neither a local folder"),
    "a model too long": (json.dumps({"model_name": "m" * 5000}), "no folder's name"),
    "a model of a user who is not": ('{"model_name": "~nobody-of-this-name/x"}', "no folder"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_broken_setup_config_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    content, message = CONFIGS[what]
    (tmp_path / "config.json").write_text(content)
    assert cli.main(["archive", str(tmp_path / "config.json"), "--output", str(tmp_path / "store")]) == 1
    assert message in _one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["archive", "--output", "STORE"], "name a setup config or give --model"),
        (["archive", "absent.json"], "absent.json"),
        (["archive", "--model", "FILE"], "is a file; give the folder"),
        (["archive", "--model", "SOUND", "--output", "FILE"], "is a file; give a folder"),
        (["archive", "--model", "SOUND", "--output", "FILE/store"], "cannot be written to (Not a directory)"),
        (["archive", "--model", "SOUND", "--output", "/proc/efft"], "cannot be written to"),
        (["archive", "--model", "SOUND", "--output", "TAKEN", "--name", "taken"], "is a folder where the archive"),
        (["archive", "--model", "SOUND", "--output", "STORE", "--name", "größe"], "name"),
        (["archive", "--model", "SOUND", "--output", "STORE", "--name", "a" * 200], "200 characters"),
        (["archive", "--model", "NAMELESS", "--output", "STORE"], "give one: --name"),
        (["archive", "--model", "SOUND", "--output", "STORE", "--max-length", "2"], "leave no room"),
        (["archive", "--model", "SOUND", "--output", "STORE", "--gemm-config", "absent"], "absent not found"),
        (["archive", "--model", "SOUND", "--output", "STORE", "--calibrate", "absent"], "--calibrate"),
        (["tune", "absent.mar"], "absent.mar"),
        (["tune", "FILE"], "x.txt"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be(
    tmp_path: Path, sound: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "x.txt").write_text("a file")
    (tmp_path / "taken" / "taken.mar").mkdir(parents=True)
    nameless = tmp_path / "图书馆"
    shutil.copytree(sound, nameless)
    places = {"SOUND": sound, "FILE": tmp_path / "x.txt", "STORE": tmp_path / "store", "TAKEN": tmp_path / "taken"}
    places["NAMELESS"] = nameless
    given = []
    for argument in arguments:
        head, *tail = argument.split("/", 1)
        given.append("/".join([str(places[head]), *tail]) if head in places else argument)
    if given[0] == "archive":
        given += ["--device", "cpu"]
    assert cli.main(given) == 1
    assert message in _one_line(capsys.readouterr().err)
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.parametrize("arguments", [["bake"], ["archive", "--kind", "fast"], ["archive", "--max-length", "x"], []])
def test_an_option_that_is_none_is_said_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "--help" in _one_line(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["inspect", "absent.mar"], ["archive", "--model", "absent/"], ["bake"]])
def test_the_real_command_prints_one_line(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "builder", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    _one_line(done.stderr)
