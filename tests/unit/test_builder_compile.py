from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder import compile as compiling
from builder.errors import BuildError


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="'no-such-compiler' not found on PATH; install a C\\+\\+17 compiler"):
        compiling.compile_cpu()


def test_the_library_is_cached(cpu_library: Path) -> None:
    modified = cpu_library.stat().st_mtime_ns
    assert compiling.compile_cpu() == cpu_library
    assert cpu_library.stat().st_mtime_ns == modified


def test_a_changed_source_changes_the_key(tmp_path: Path) -> None:
    source = tmp_path / "a.cpp"
    source.write_text("int a;")
    step = compiling.Step(source, ("g++", "-O3"))
    before = compiling._digest(step, "headers")
    source.write_text("int b;")
    after = compiling._digest(step, "headers")
    assert before != after
    assert compiling._digest(step, "other headers") != after
    assert compiling._digest(compiling.Step(source, ("g++", "-O2")), "headers") != after


def test_a_compiler_error_names_the_source(tmp_path: Path) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int main( {")
    with pytest.raises(BuildError, match=r"compiling broken.cpp failed:\n.*error"):
        compiling._compile_one(compiling.Step(source, ("g++",)), tmp_path / "broken.o")
    assert not (tmp_path / "broken.o").exists()


def test_a_target_without_hopper_features_is_refused() -> None:
    with pytest.raises(BuildError, match="90a"):
        compiling.compile_cuda(["80", "90"])


def test_the_cuda_sources_compile_without_a_gpu() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine")
    try:
        library = compiling.compile_cuda(["90a"])
    except BuildError as error:
        if "cublasLt.h" not in str(error):
            raise
        pytest.skip(f"nvcc is here, but not what the sources include: {error}")
    assert library.stat().st_size > 100_000
