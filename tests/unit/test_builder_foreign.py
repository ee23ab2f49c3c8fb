"""A checkpoint brings no code and no file of the machine; no call may let it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder import foreign
from builder.compile import ROOT
from builder.errors import BuildError
from builder.foreign import refuse_foreign_files

SOURCES = [
    path
    for folder in ("builder", "handler", "samples", "deploy", "benchmarks")
    for path in ROOT.glob(f"{folder}/**/*.py")
]
_LOADERS = ("from_pretrained", "SentenceTransformer", "CrossEncoder", "SparseEncoder", "pipeline")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = tmp_path / "checkpoint"
    (own / "1_Pooling").mkdir(parents=True)
    (own / "config.json").write_text('{"model_type": "bert"}')
    (own / "1_Pooling" / "config.json").write_text("{}")
    (own / "vocab.txt").write_text("a\n")
    return own


def _calls(path: Path) -> list[tuple[str, dict[str, ast.expr], str]]:
    """Each call: its last name, its keywords, also those that a function gives it by ``**``, and its function."""
    tree = ast.parse(path.read_text())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        for keyword in node.keywords:
            if keyword.arg is None and isinstance(keyword.value, ast.Call):
                giver = functions.get(getattr(keyword.value.func, "id", ""))
                for given in ast.walk(giver) if giver else ():
                    if isinstance(given, ast.Dict):
                        keywords |= {
                            key.value: value
                            for key, value in zip(given.keys, given.values, strict=True)
                            if isinstance(key, ast.Constant)
                        }
        found.append((name, keywords, ast.unparse(node.func)))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_lets_a_checkpoint_run_its_code(path: Path) -> None:
    for name, keywords, function in _calls(path):
        if name in _LOADERS and not function.startswith("PeftModel"):
            value = keywords.get("trust_remote_code")
            assert isinstance(value, ast.Constant), f"{function}: trust_remote_code is not given"
            assert value.value is False, function
        if function in ("torch.load", "load_state_dict_file"):
            value = keywords.get("weights_only")
            assert isinstance(value, ast.Constant), f"{function}: weights_only is not given"
            assert value.value is True, function
        assert "allow_pickle" not in keywords, function
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_own_code_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    own = tmp_path / "checkpoint"
    own.mkdir()
    code = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    (own / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": code}))
    (own / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    command = [sys.executable, "-m", "builder", "archive", "--model", str(own), "--output", str(tmp_path / "store")]
    result = subprocess.run(
        [*command, "--kind", "ori"], input="yes\n" * 100, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 1
    *_, last = result.stderr.splitlines()
    assert last == (
        "builder: checkpoint: model_type 'own' needs the checkpoint's own code (auto_map), which is never run"
    )
    assert not ran.exists()
    assert list((tmp_path / "store").glob("*")) == []


def test_a_folder_and_links_within_it_pass(folder: Path) -> None:
    (folder / "again.txt").symlink_to("vocab.txt")
    refuse_foreign_files(folder, "checkpoint")
    refuse_foreign_files(folder.parent / "nowhere", "checkpoint")


@pytest.mark.parametrize("place", ["vocab.txt", "1_Pooling/config.json", "2_Dense", "deep/er/tokenizer.json"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, place: str, absolute: bool) -> None:
    secret = tmp_path / "secret"
    secret.mkdir() if place == "2_Dense" else secret.write_text("key")
    link = folder / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(secret if absolute else os.path.relpath(secret, link.parent))
    with pytest.raises(BuildError, match=f"^checkpoint: {place} is a link out of the checkpoint's folder; put a copy"):
        refuse_foreign_files(folder, "checkpoint")


def test_a_link_by_way_of_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    (folder / "a.json").symlink_to("b.json")
    (folder / "b.json").symlink_to(tmp_path / "secret")
    with pytest.raises(BuildError, match="is a link out"):
        refuse_foreign_files(folder, "checkpoint")


def test_links_in_a_circle_and_pipes_are_refused(folder: Path) -> None:
    (folder / "a.json").symlink_to("a.json")
    with pytest.raises(BuildError, match=r"a.json cannot be read"):
        refuse_foreign_files(folder, "checkpoint")
    (folder / "a.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(BuildError, match=r"tokenizer.json is neither a file nor a folder; remove it"):
        refuse_foreign_files(folder, "checkpoint")


def test_the_caches_links_into_its_blobs_pass_and_no_others(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    (snapshot / "1_Pooling").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "aa").write_text('{"model_type": "bert"}')
    (snapshot / "config.json").symlink_to("../../blobs/aa")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/aa")
    refuse_foreign_files(snapshot, "org/name")
    (tmp_path / "secret").write_text("key")
    (repository / "blobs" / "bb").symlink_to(tmp_path / "secret")
    (snapshot / "vocab.txt").symlink_to("../../blobs/bb")
    with pytest.raises(BuildError, match=r"^org/name: vocab.txt is a link out"):
        refuse_foreign_files(snapshot, "org/name")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", [{"path": "", "type": "x"}, {"path": "../../etc"}]),
        ("modules.json", [{"path": "/etc"}]),
        ("model.safetensors.index.json", {"weight_map": {"a": "../secret.safetensors"}}),
        ("pytorch_model.bin.index.json", {"weight_map": {"a": ".."}}),
    ],
)
def test_a_path_out_of_the_folder_is_refused(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(BuildError, match=f"^checkpoint: {name} names .*, which lies outside the checkpoint's folder"):
        refuse_foreign_files(folder, "checkpoint")


@pytest.mark.parametrize("content", ["{", "[1, null]", '{"weight_map": 3}', "[" * 100_000])
def test_a_damaged_index_is_left_to_its_reader(folder: Path, content: str) -> None:
    (folder / "modules.json").write_text(content)
    refuse_foreign_files(folder, "checkpoint")


def test_a_text_beyond_any_tokenizers_size_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_LARGEST", 1 << 20)
    (folder / "vocab.txt").write_bytes(b"x" * (2 << 20))
    with pytest.raises(BuildError, match=r"vocab.txt has 2 MiB, more than the 1 that any tokenizer needs"):
        refuse_foreign_files(folder, "checkpoint")
