"""The bindings use nothing of torch's headers that the oldest release supported lacks."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
BINDINGS = sorted([*(KERNELS / "torch").glob("*.*"), *(KERNELS / "test").glob("*.*")])
OLDEST_HAS = {
    "STABLE_TORCH_LIBRARY", "STABLE_TORCH_LIBRARY_FRAGMENT", "STABLE_TORCH_LIBRARY_IMPL", "STD_TORCH_CHECK",
    "TORCH_BOX", "TORCH_TARGET_VERSION",
}  # fmt: skip
"""Of torch's macros, those in the headers of 2.10 and of every release since."""
FOLDERS = [folder for folder in os.environ.get("EFFT_TORCH_INCLUDES", "").split(os.pathsep) if folder]


@pytest.mark.parametrize("source", BINDINGS, ids=lambda path: path.name)
def test_torch_macros_are_old_enough(source: Path) -> None:
    used = set(re.findall(r"\b(?:STABLE_TORCH|STD_TORCH|TORCH|C10|AT)_[A-Z_0-9]+\b", source.read_text()))
    assert used <= OLDEST_HAS


@pytest.mark.parametrize("source", [path for path in BINDINGS if path.suffix == ".cpp"], ids=lambda path: path.name)
@pytest.mark.parametrize("folder", FOLDERS or [None], ids=lambda folder: Path(folder or "none").parts[-1])
def test_bindings_compile_against_other_releases(source: Path, folder: str | None) -> None:
    """``EFFT_TORCH_INCLUDES`` names include folders of other torch releases, such as the oldest, to compile against."""
    if folder is None:
        pytest.skip("EFFT_TORCH_INCLUDES names no headers of another torch")
    compiler = ["g++", "-fsyntax-only"]
    if source.stem.endswith("_cuda"):
        if shutil.which("nvcc") is None:
            pytest.skip("no nvcc here")
        compiler = [
            "nvcc",
            "-DUSE_CUDA",
            "-arch=sm_80",
            "-x",
            "cu",
            "--expt-relaxed-constexpr",
            "-cuda",
            "-o",
            os.devnull,
        ]
        compiler += [f"-I{include}" for include in _cublas_includes()]
    flags = ["-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL", f"-I{KERNELS / 'include'}", f"-I{folder}"]
    ran = subprocess.run([*compiler, *flags, str(source)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[:2000]


def _cublas_includes() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(path) for path in (spec.submodule_search_locations or [])] if spec else []
    given = os.environ.get("CUBLAS_INCLUDE")
    return [*([Path(given)] if given else []), *(package / "cu13" / "include" for package in packages)]
