"""The library as a C or C++ project finds it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from builder.compile import KERNELS
from builder.native.library import ABI, compile_native, version
from tests.native.conftest import Export, run

ALLOWED = re.compile(r"(libstdc\+\+|libgomp|libm|libgcc_s|libc|libpthread|ld-linux[-\w]*)\.so\.\d+")
"""The C++ library and OpenMP, and the C library that both stand on."""
EXAMPLES = KERNELS / "c" / "examples"


def test_needs_only_the_cxx_library_and_openmp(library: Path) -> None:
    said = run("readelf", "-d", library)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", said)
    assert {"libstdc++.so.6", "libgomp.so.1"} <= set(needed)
    assert [name for name in needed if not ALLOWED.fullmatch(name)] == []
    assert re.findall(r"\(SONAME\).*\[(.+)\]", said) == [f"libefft.so.{ABI}"]
    assert "RUNPATH" not in said


def test_exports_the_headers_functions_and_nothing_else(library: Path) -> None:
    symbols = run("nm", "-D", "--defined-only", library).split("\n")
    exported = {line.split()[-1].split("@")[0] for line in symbols if line and " A " not in line}
    header = (KERNELS / "include" / "efft" / "efft.h").read_text()
    assert exported == set(re.findall(r"^EFFT_API [\w* ]+?\*?\s?(efft_\w+)\(", header, re.MULTILINE))
    assert f"#define EFFT_ABI_VERSION {ABI}\n" in header


def test_layout(prefix: Path) -> None:
    assert os.readlink(prefix / "lib/libefft.so") == f"libefft.so.{ABI}"
    assert os.readlink(prefix / f"lib/libefft.so.{ABI}") == f"libefft.so.{version()}"
    for file in ("lib/pkgconfig/efft.pc", "lib/cmake/efft/efft-config.cmake"):
        assert "@" not in (prefix / file).read_text()


@pytest.mark.parametrize("wanted", ["9.0", "0.0.1"])
def test_cmake_refuses_another_version(prefix: Path, tmp_path: Path, wanted: str) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake here")
    text = f"cmake_minimum_required(VERSION 3.16)\nproject(x CXX)\nfind_package(efft {wanted})\n"
    (tmp_path / "CMakeLists.txt").write_text(text + 'message(STATUS "found=${efft_FOUND}")\n')
    said = run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert "found=0" in said


@pytest.mark.parametrize(("compiler", "flags", "source"), [
    ("gcc", ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"], "classify.c"),
    ("g++", ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-x", "c++"], "classify.c"),
])  # fmt: skip
def test_pkg_config(export: Export, prefix: Path, tmp_path: Path, compiler: str, flags: list[str], source: str) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config here")
    if compiler == "g++":  # the header, in the oldest C++ that people still have
        (tmp_path / "x.cpp").write_text("#include <efft/efft.h>\nint main() { return efft_version()[0] == 0; }\n")
    program = tmp_path / "program"
    environment = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    assert run("pkg-config", "--modversion", "efft", env=environment).strip() == version()
    found = run("pkg-config", "--cflags", "--libs", "efft", env=environment).split()
    given = EXAMPLES / source if compiler == "gcc" else tmp_path / "x.cpp"
    run(compiler, *flags, given, "-o", program, *found, f"-Wl,-rpath,{prefix}/lib")
    run(program, *([export().folder, "2,3"] if compiler == "gcc" else []))


SANITIZERS = {"thread": ("-fsanitize=thread", "1"), "address": ("-fsanitize=address,undefined", "2")}


@pytest.mark.parametrize("kind", SANITIZERS)
def test_clean_under_sanitizers(export: Export, tmp_path: Path, kind: str) -> None:
    """Eight threads on one model. ThreadSanitizer's library makes its teams of std::thread, see cpu/parallel.h."""
    if not os.environ.get("EFFT_NATIVE_SANITIZERS"):
        pytest.skip("takes minutes to compile; `make native` runs it")
    flag, each = SANITIZERS[kind]
    library = compile_native(sanitizer=kind)
    program = tmp_path / "threads"
    (tmp_path / f"libefft.so.{ABI}").symlink_to(library)
    run("g++", "-std=c++17", "-O1", "-g", flag, f"-I{KERNELS / 'include'}", EXAMPLES / "threads.cpp", library,
        "-o", program, "-pthread", f"-Wl,-rpath,{tmp_path}")  # fmt: skip
    said = run(program, export().folder, "2000", "8", each, timeout=900)
    assert said == "8 threads x 2000 batches: 0 differ, 0 threads failed\n"
