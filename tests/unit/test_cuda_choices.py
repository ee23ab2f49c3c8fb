"""Which kernels the CUDA engine picks: its own decisions, compiled for the host, for a device that is made up here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.workloads import make_workload

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
DECISIONS = ("linear/choose.cu", "attention/choose.cu", "engine/path.cu")
H200 = 132
SPECS = {
    "base": "encoder/1 layers=12 hidden=768 heads=12 intermediate=3072",
    "large": "encoder/1 layers=24 hidden=1024 heads=16 intermediate=4096",
    "relu": "encoder/1 layers=12 hidden=768 heads=12 intermediate=3072 activation=relu",
    "pre": "encoder/1 layers=12 hidden=768 heads=12 intermediate=3072 norm=pre",
}
MEASURED = {
    ("base", "1x32"): "32 small few:32x24/1*1 few:32x24/4*1 few:32x32/1*1 few:32x24/4*1 resident:1x1",
    ("base", "1x128"): "128 small few:64x64/1*1 few:64x48/4*1 few:64x64/1*1 few:64x48/4*1 resident:1x1",
    ("base", "1x384"): "384 small many:96 few:64x64/1*1 many:96 few:128x96/4*1 resident:1x2",
    ("base", "8x32"): "256 small few:64x96/1*1 few:64x48/1*1 few:64x96/1*1 few:128x96/4*1 resident:1x1",
    ("base", "8x128"): "attends, 448 small many:96 few:64x64/1*1 many:96 few:64x96/2*1 resident:1x1",
    ("base", "8x384"): "counts, 1792 library many:256 many:96 many:176 many:96 resident:2x1",
    ("base", "32x32"): "attends, 512 small many:96 few:64x64/1*1 many:96 few:64x96/2*1 resident:1x1",
    ("base", "32x128"): "counts, 1792 library many:256 many:96 many:176 many:96 ring:2x1",
    ("base", "32x384"): "counts, 6144 library cublaslt many:96 many:turns cublaslt ring:2x1",
    ("large", "1x128"): "128 small few:64x64/1*1 few:64x32/4*1 few:64x64/1*1 few:64x32/4*1 resident:1x1",
    ("large", "8x384"): "counts, 1792 library cublaslt cublaslt cublaslt cublaslt ring:2x1",
    ("large", "32x384"): "counts, 6144 library cublaslt cublaslt many:turns cublaslt ring:2x1",
}
"""What was the fastest on an H200 (docs/kernels.md): bucket, path, QKV, output, up and down product, attention."""


def compiled(program: Path, sources: Sequence[Path], decisions: Sequence[str]) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    files = [*map(str, sources), "-x", "c++", *(str(KERNELS / "cuda" / name) for name in decisions)]
    subprocess.run([compiler, "-std=c++17", f"-I{KERNELS / 'include'}", *files, "-o", str(program)], check=True)
    return program


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [Path(__file__).with_name("choices.cpp"), *sorted((KERNELS / "core").glob("*.cpp"))]
    return compiled(tmp_path_factory.mktemp("choices") / "choices", sources, DECISIONS)


def chosen(chooser: Path, model: str, sizes: list[str], environment: dict[str, str] | None = None) -> list[str]:
    arguments = [str(H200), SPECS[model]]
    for size in sizes:
        workload = make_workload(size, "rand_r")
        arguments += [str(workload.batch), str(workload.padded), str(workload.tokens)]
    ran = subprocess.run([str(chooser), *arguments], env=environment, capture_output=True, text=True, check=False)
    return (ran.stdout + ran.stderr).splitlines()


@pytest.mark.parametrize("model", ["base", "large"])
def test_the_measured_choices_stay(chooser: Path, model: str) -> None:
    sizes = [size for of, size in MEASURED if of == model]
    found = chosen(chooser, model, sizes)
    assert dict(zip(sizes, found, strict=True)) == {size: MEASURED[model, size] for size in sizes}


def test_what_a_kernel_lacks_it_does_not_bid_for(chooser: Path) -> None:
    """The kernel for many rows has no relu, and there are no folded norms before a block."""
    (line,) = chosen(chooser, "relu", ["32x384"])
    assert line == "counts, 6144 library cublaslt many:96 cublaslt cublaslt ring:2x1"
    (line,) = chosen(chooser, "pre", ["1x32"])
    assert line.split()[1] == "library"


@pytest.mark.parametrize("path", ["small", "hopper", "library"])
def test_a_path_can_be_forced(chooser: Path, path: str) -> None:
    for line in chosen(chooser, "base", ["1x32", "32x384"], {"EFFT_CUDA_PATH": path}):
        assert f" {path} " in line


@pytest.mark.parametrize(
    ("model", "path", "words"), [("pre", "small", "this needs"), ("base", "fast", "must be small")]
)
def test_a_path_that_cannot_be_taken_says_so(chooser: Path, model: str, path: str, words: str) -> None:
    said = "\n".join(chosen(chooser, model, ["1x32"], {"EFFT_CUDA_PATH": path}))
    assert words in said
    assert "EFFT_CUDA_PATH" in said


def test_eight_bits_are_cut_as_was_fastest(tmp_path: Path) -> None:
    """Within 2.5 % of the fastest of all cuts, for every product that was measured: what two measurements differ by."""
    source = Path(__file__).with_name("choices_eight.cpp")
    program = compiled(tmp_path / "choices", [source], ["linear/choose_eight.cu"])
    measured = results.load(results.RESULTS / "cuts-cuda-2026-11-30-150750.json")["rows"]
    shapes = [(row["tokens"], row["outputs"], row["inputs"], int(row["product"] == "up")) for row in measured]
    command = [str(program), str(H200), *(str(number) for shape in shapes for number in shape)]
    cuts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for row, cut in zip(measured, cuts, strict=True):
        times = row["microseconds"]
        assert times[cut] <= 1.025 * min(times.values()), (row, cut)
