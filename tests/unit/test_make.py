"""What a user gives make reaches Python as it stands and is run by nobody; what it may do there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import make
from builder.compile import ROOT
from builder.inspection import read_facts
from tests.checkpoints import make_checkpoint

HOSTILE = [
    "$(shell touch PWNED)", "$(eval x := $(shell touch PWNED))", "$$(touch PWNED)", "$(touch PWNED)", "`touch PWNED`",
    "; touch PWNED", "&& touch PWNED", "| touch PWNED", "> PWNED", "'; touch PWNED; '", '"; touch PWNED; "',
    "a\ntouch PWNED", "a\n\ttouch PWNED", "x \\\n; touch PWNED", "--help", "-e x", "two words", "$", "#${HOME}%*?~",
    "\\'\"$(MAKE)$@$<",
]  # fmt: skip
VARIABLES = (
    "MODEL", "NAME", "NAMES", "TASK", "ENCODER", "FORMAT", "COMPUTE", "SCHEME", "MODE", "KIND", "DTYPE",
    "DEVICE", "CALIBRATE", "ADAPTER", "BENCH", "PORT", "TORCH_INDEX", "PYTHON",
)  # fmt: skip
TARGETS = ("setup", "compile", "archive", "serve", "predict", "demo", "bench", "lock")
CLEAN = {name: text for name, text in os.environ.items() if name not in VARIABLES and not name.startswith("MAKE")}
"""Tests may be run by make."""
_RECORD = """#!{python} -IS
import json, os, sys
with open("called", "a") as called:
    called.write(json.dumps([sys.argv[1:], {{name: os.environ.get(name) for name in {names}}}]) + "\\n")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile, among environments whose python writes down how it was called."""
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    shutil.copytree(ROOT / "locks", tmp_path / "locks")
    for folder in (".venv", "build/tools"):
        python = tmp_path / folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(_RECORD.format(python=sys.executable, names=VARIABLES))
        python.chmod(0o755)
        for stamp in (".ready", ".bench", ".peers"):
            (tmp_path / folder / stamp).touch()
    (tmp_path / "called").touch()
    return tmp_path


def _calls(checkout: Path) -> list[tuple[list[str], dict[str, str]]]:
    text = (checkout / "called").read_text()
    (checkout / "called").write_text("")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_name_reaches_python_as_it_stands(checkout: Path, value: str) -> None:
    before = set(checkout.rglob("*"))
    given = dict.fromkeys(VARIABLES, value)
    command = ["make", *TARGETS, *(f"{name}={text}" for name, text in given.items()), f"EFFT_X={value}"]
    subprocess.run(command, cwd=checkout, env=CLEAN, check=True, capture_output=True)
    calls = _calls(checkout)
    assert all(seen == given and value not in arguments for arguments, seen in calls)
    asked = [" ".join(arguments[1:3]) for arguments, _ in calls]
    assert set(asked) >= {
        f"builder.make {name}" for name in ("compile", "archive", "serve", "predict", "demo", "bench")
    }
    assert "builder.locks lock" in asked
    subprocess.run(["make", "archive"], cwd=checkout, env={**CLEAN, **given}, check=True, capture_output=True)
    assert [seen for _, seen in _calls(checkout)] == [given]
    assert set(checkout.rglob("*")) == before


@pytest.mark.parametrize("value", HOSTILE)
def test_an_interpreter_of_that_name_is_refused(checkout: Path, value: str) -> None:
    (checkout / ".venv" / ".ready").unlink()
    before = set(checkout.rglob("*"))
    command = ["make", "setup", f"PYTHON={value}"]
    assert subprocess.run(command, cwd=checkout, env=CLEAN, check=False, capture_output=True).returncode
    assert _calls(checkout) == []
    assert set(checkout.rglob("*")) == before


@pytest.mark.parametrize("value", HOSTILE)
def test_python_refuses_it_in_a_line(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make, "STORE", tmp_path / "store")
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(make, "_run", lambda *arguments: ran.append(arguments) or 0)
    assert make.main(["archive"], {"MODEL": value, "KIND": "ori"}) == 1
    named = {"MODEL": str(tmp_path / "nowhere"), "NAME": value, "KIND": "ori"}
    assert make.main(["archive"], named) == 1
    for variable in ("TASK", "ENCODER", "FORMAT", "COMPUTE", "SCHEME", "MODE", "KIND", "DTYPE", "DEVICE"):
        with pytest.raises(SystemExit):
            make.main(["archive"], {"MODEL": "x", variable: value})
    for target in ("serve", "predict"):
        if make.main([target], {"NAMES": value}) == 0:
            assert ran.pop() == ("deploy", target, *value.split())
            assert all(name.isalnum() for name in value.split())
    make.main(["bench", "--minutes", "1"], {"BENCH": value})
    assert all(call[:4] == ("benchmarks", "encoder", "--minutes", "1") for call in ran)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_names_the_variable_and_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    for variable, value, choice in (
        ("TASK", "summarization", "rerank"),
        ("SCHEME", "int4", "int8"),
        ("KIND", "x", "ori"),
    ):
        with pytest.raises(SystemExit):
            make.main(["archive"], {"MODEL": "x", variable: value})
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"builder: {variable}=: invalid choice: '{value}' (choose from ")
        assert choice in line
        assert "--" not in line


def test_later_refusals_and_notes_name_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "mine", "bert")
    monkeypatch.setattr(make, "STORE", tmp_path / "store")
    for given, said in (
        ({"CALIBRATE": "nowhere"}, "CALIBRATE is for SCHEME int8 or fp8"),
        ({"ADAPTER": "a=x b=y", "KIND": "ori"}, "adapters to choose from"),
    ):
        capsys.readouterr()
        assert make.main(["archive"], {"MODEL": str(folder), **given}) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert "--" not in line


def test_a_folder_of_such_a_name_becomes_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "a $(touch PWNED) 'ü\n; b", "bert")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make, "STORE", tmp_path / "store")
    given = {"MODEL": str(folder), "NAME": "plain", "KIND": "ori", "DEVICE": "cpu", "MODE": "", "NAMES": "other"}
    assert make.main(["archive"], given) == 0
    assert read_facts(tmp_path / "store" / "plain.mar").name == "plain"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "store"])


@pytest.mark.parametrize("name", ["model", "Name", "NMAE", "VENV"])
def test_a_misspelt_variable_is_refused_before_anything_runs(checkout: Path, name: str) -> None:
    command = ["make", "archive", f"{name}=$(shell touch PWNED)"]
    result = subprocess.run(command, cwd=checkout, env=CLEAN, check=False, capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{name}= is no variable of this Makefile, which has MODEL NAME" in line
    assert not _calls(checkout)
    assert not (checkout / "PWNED").exists()
    given = {**CLEAN, name: "x", "CXX": "g++"}
    subprocess.run(["make", "archive", "CXX=g++"], cwd=checkout, env=given, check=True, capture_output=True)
    assert len(_calls(checkout)) == 1


@pytest.mark.parametrize("index", ["", "https://example.org/whl"])
def test_setup_says_that_it_takes_minutes_once(checkout: Path, index: str) -> None:
    (checkout / ".venv" / ".ready").unlink()
    given = {**CLEAN, "PYTHON": str(checkout / ".venv" / "bin" / "python"), "TORCH_INDEX": index, "hint": "no"}
    command = ["make", "setup"]
    said = subprocess.run(command, cwd=checkout, env=given, check=True, capture_output=True, text=True).stdout
    hint = "; without a GPU TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes"
    assert said == f"setting up .venv (a few minutes{'' if index else hint})\n"
    assert _calls(checkout)[-1][0] == ["-m", "builder.requirements", "dev"]
    said = subprocess.run(command, cwd=checkout, env=given, check=True, capture_output=True, text=True).stdout
    assert "setting up" not in said


def test_nothing_is_built_for_a_server_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "STORE", tmp_path)
    built: list[dict[str, str]] = []
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(make, "archive", lambda given: built.append(dict(given)) or 0)
    monkeypatch.setattr(make, "_run", lambda *arguments: ran.append(arguments) or 1)
    assert make.main(["demo"], {}) == make.main(["serve"], {}) == 1
    assert (ran, built) == ([("deploy", "check")] * 2, [])
    monkeypatch.setattr(make, "_run", lambda *arguments: ran.append(arguments) or 0)
    assert make.main(["demo"], {"MODEL": "another", "COMPUTE": "bf16"}) == 0
    assert ran[2:] == [("deploy", "check"), ("deploy", "demo", *make.SAMPLES)]
    assert [given["COMPUTE"] for given in built] == ["bf16"]
    assert "MODEL" not in built[0]


def test_without_names_whatever_is_served_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(make, "_run", lambda *arguments: ran.append(arguments) or 0)
    for given in ({}, {"NAME": "one"}, {"NAMES": "two three"}):
        make.main(["predict"], given)
    assert ran == [("deploy", "predict"), ("deploy", "predict", "one"), ("deploy", "predict", "two", "three")]


def test_names_are_those_given_or_the_samples() -> None:
    assert make.served_names({}) == list(make.SAMPLES)
    assert make.served_names({"NAME": "one"}) == ["one"]
    assert make.served_names({"NAME": "one", "NAMES": "two three"}) == ["two", "three"]
    with pytest.raises(make.MakeError, match=r"'\.\./x' is no archive's name"):
        make.served_names({"NAMES": "../x"})
