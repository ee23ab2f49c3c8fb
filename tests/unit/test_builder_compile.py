from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder import compile as compiling
from builder import objects
from builder.errors import BuildError


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="'no-such-compiler' not found on PATH; install a C\\+\\+17 compiler"):
        compiling.compile_cpu()


def test_the_library_is_cached(cpu_library: Path) -> None:
    modified = cpu_library.stat().st_mtime_ns
    assert compiling.compile_cpu() == cpu_library
    assert cpu_library.stat().st_mtime_ns == modified


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two sources; a.cpp reaches far.h through near.h, b.cpp includes neither."""
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "far.h").write_text("int far();")
    (tmp_path / "near.h").write_text('  #  include "far.h"')
    (tmp_path / "a.cpp").write_text('#include "near.h"\n#include <vector>\nint a;')
    (tmp_path / "b.cpp").write_text("#include <torch/csrc/stable/library.h>\nint b;")
    return tmp_path


def _keys(tree: Path, *flags: str) -> tuple[str, str]:
    steps = [objects.Step(tree / name, ("g++", *flags)) for name in ("a.cpp", "b.cpp")]
    a, b = (objects.digest(step, tree / "include") for step in steps)
    return a, b


def test_a_changed_source_or_flag_changes_the_key(tree: Path) -> None:
    before = _keys(tree)
    assert _keys(tree) == before
    assert all(new != old for new, old in zip(_keys(tree, "-O2"), before, strict=True))
    (tree / "a.cpp").write_text("int c;")
    assert _keys(tree)[0] != before[0]
    assert _keys(tree)[1] == before[1]


@pytest.mark.parametrize("header", ["near.h", "include/far.h"])
def test_a_touched_header_changes_its_users_keys_only(tree: Path, header: str) -> None:
    before = _keys(tree)
    with (tree / header).open("a") as file:
        file.write(" // touched")
    assert _keys(tree)[0] != before[0]
    assert _keys(tree)[1] == before[1]


def test_torch_counts_where_it_is_included(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _keys(tree)
    monkeypatch.setattr("torch.__version__", "9.9.9")
    assert _keys(tree)[0] == before[0]
    assert _keys(tree)[1] != before[1]


def test_every_include_in_quotes_is_followed() -> None:
    """One that is not found where the scan looks would be left out of the key."""
    sources = [path for path in sorted(compiling.KERNELS.rglob("*.c*")) if path.parent.name != "lab"]
    for source in sources:
        headers, _ = objects.reached(source, compiling.KERNELS / "include")
        for path in (source, *headers):
            for line in path.read_text().splitlines():
                if line.startswith('#include "'):
                    name = line.split('"')[1]
                    assert any(header.as_posix().endswith(name.replace("../", "")) for header in headers), (path, name)


def test_a_compiler_error_names_the_source(tmp_path: Path) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int main( {")
    with pytest.raises(BuildError, match=r"compiling broken.cpp failed:\n.*error"):
        objects.compile_one(objects.Step(source, ("g++",)), tmp_path / "broken.o")
    assert not list(tmp_path.glob("broken.*o*"))


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
