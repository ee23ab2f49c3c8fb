"""The wheel: what is in it, and that what it holds works where no checkout is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from builder.compile import ROOT, build_folder
from deploy import efft
from tests.unit.handler_fakes import PooledLogits, save_archive

LEFT_OUT = {"builder/locks.py", "builder/make.py", "builder/requirements.py", "builder/sbom.py"}
"""What serves the checkout alone."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip would unpack it into."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


def _run(installed: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process that knows the wheel and the environment's packages, and no checkout."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("EFFT_")}
    settings = {**clean, "PYTHONPATH": str(installed), "HOME": str(installed.parent), **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=installed.parent, env=settings, capture_output=True, text=True, check=False
    )


def _files(folder: str, *endings: str) -> set[str]:
    found = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("what belongs into it is known by git, and this is no clone")
    return {name for name in found.stdout.splitlines() if name.endswith(endings)}


def test_it_has_every_module_and_every_source_and_no_module_kernels(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    modules = set.union(*(_files(folder, ".py") for folder in ("builder", "handler", "deploy")))
    assert modules - names == LEFT_OUT
    sources = {f"builder/{name}" for name in _files("kernels", ".h", ".cuh", ".cpp", ".cu")}
    assert sources <= names
    assert {f"deploy/{name}" for name in _files("setup_configs", ".json", ".properties")} <= names
    assert "deploy/nginx.conf.template" in names
    assert {name.split("/")[0] for name in names} == {"builder", "handler", "deploy", "efft-0.1.0.dist-info"}


def test_its_sources_are_found_and_built_in_the_users_cache(installed: Path, tmp_path: Path) -> None:
    code = (
        "from builder.compile import BUILD, KERNELS; print(BUILD, KERNELS, (KERNELS / 'torch' / 'ops.cpp').is_file())"
    )
    said = _run(installed, "-c", code, XDG_CACHE_HOME=str(tmp_path)).stdout.split()
    assert said == [str(tmp_path / "efft"), str(installed / "builder" / "kernels"), "True"]
    said = _run(installed, "-c", code, XDG_CACHE_HOME="not/absolute").stdout.split()
    assert said[0] == str(installed.parent / ".cache" / "efft")
    assert build_folder({}) == ROOT / "build", "a checkout keeps its own"
    assert build_folder({"EFFT_BUILD_DIR": "/elsewhere"}) == Path("/elsewhere")


def test_kernels_is_no_module(installed: Path) -> None:
    """transformers takes one of that name for Hugging Face's package."""
    code = "from importlib.util import find_spec; import builder, handler, deploy; print(find_spec('kernels'))"
    assert _run(installed, "-c", code).stdout == "None\n"


def test_an_archive_is_built_and_examined_by_the_command(
    installed: Path, tmp_path: Path, checkpoint: Path, cpu_library: Path
) -> None:
    """With transformers' modules, since the compiler has its own tests."""
    arguments = ["archive", "--model", str(checkpoint), "--kind", "ths", "--name", "small", "--output", str(tmp_path)]
    built = _run(installed, "-m", "deploy.efft", *arguments)
    assert built.returncode == 0, built.stderr
    assert built.stdout.splitlines()[-1] == str(tmp_path / "small.mar")
    shown = _run(installed, "-m", "deploy.efft", "inspect", "--json", str(tmp_path / "small.mar"))
    assert json.loads(shown.stdout)["encoder"] == "stock"
    examined = _run(installed, "-m", "deploy.efft", "doctor", str(tmp_path / "small.mar"))
    assert examined.stdout.endswith("servable\n"), examined.stdout + examined.stderr


def test_help_explains_the_parents_words_and_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert efft.main(["--help"]) == 0
    said = capsys.readouterr().out
    for word in ("ori", "ths", "thsext", *efft.COMMANDS):
        assert f"\n  {word} " in said
    assert efft.main([]) == 0
    assert capsys.readouterr().out == said
    for name in efft.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            efft.main([name, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: efft {name} ")


def test_what_is_misspelt_or_not_installed_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert efft.main(["srve"]) == 2
    assert capsys.readouterr().err == "efft: there is no command 'srve'; did you mean serve?\n"
    monkeypatch.setattr(efft, "find_spec", lambda name: None if name == "transformers" else object())
    assert efft.main(["archive", "--model", "x"]) == 1
    assert capsys.readouterr().err == (
        "efft: archive needs transformers, which is not installed; pip install 'efft[build]'\n"
    )


def test_a_served_archive_that_is_none_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_archive(tmp_path / "one", PooledLogits(2), "sequence_classification", {})
    (tmp_path / "empty").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.mar").write_bytes(b"")
    cases = {
        (str(tmp_path / "none.mar"),): "there is no archive",
        (str(tmp_path / "one" / "model.pt"),): "there is no archive",
        (str(tmp_path / "empty"),): "there is no .mar in",
        (str(tmp_path / "a"), str(tmp_path / "b" / "same.mar")): "two archives are called same",
    }
    for arguments, message in cases.items():
        assert efft.main(["serve", *arguments, "--folder", str(tmp_path / "run")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"efft: {message}")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        efft.main(["serve", "x.mar", "--prot", "1"])
    assert capsys.readouterr().err == "efft: unrecognized arguments: --prot 1; see efft serve --help\n"
    assert efft.main(["health", "--port", "1", "--folder", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == "efft: no answer from http://127.0.0.1:1 (ConnectionError)\n"
