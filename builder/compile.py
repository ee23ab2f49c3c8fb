"""Compile ``kernels/`` into ``libefft_cpu.so`` and ``libefft_cuda.so``, cached by a hash of sources and flags.

Both libraries use torch's stable ABI (``torch/csrc/stable``) and so load in every torch from 2.10 on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from builder.errors import BuildError

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
BUILD = Path(os.environ.get("EFFT_BUILD_DIR", ROOT / "build"))
OLDEST_TORCH = (2, 10)
CUDA_TARGETS = ("80", "86", "89", "90a")
"""Compute capabilities that get machine code; PTX of the newest portable one covers later chips."""

_TORCH = Path(torch.__file__).parent
_TARGET_VERSION = f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
_COMMON = ["-std=c++17", "-O3", f"-DTORCH_TARGET_VERSION={_TARGET_VERSION}ULL"]
_CXX_NEEDED = "a C++17 compiler, g++ 11 or later (Debian: apt install g++), or set CXX"
# A source built for one instruction set says so in its name; the dispatcher in cpu/ picks at run time.
_AVX512_BF16 = [
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512vnni", "-mfma", "-mf16c",
]  # fmt: skip
_CPU_ISA = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "_avx512bf16": _AVX512_BF16,
    "_amx": [*_AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
}


def cpu_targets() -> tuple[str, ...]:
    """What ``libefft_cpu.so`` has code for on this machine's architecture, the portable path first."""
    machine = os.uname().machine
    if machine != "x86_64":
        return (machine,)
    stems = [source.stem for source in (KERNELS / "cpu").glob("*.cpp")]
    return (machine, *(isa.strip("_") for isa in _CPU_ISA if any(stem.endswith(isa) for stem in stems)))


@dataclass(frozen=True)
class Step:
    """One compiler call: ``command`` plus ``-c source -o object``."""

    source: Path
    command: tuple[str, ...]


def compile_cpu(*, sanitize: bool = False) -> Path:
    """Build ``libefft_cpu.so`` with the C++ compiler in ``$CXX`` (default g++).

    Returns the library's path. Raises BuildError when no compiler is found or it reports an error.
    """
    compiler = _tool(os.environ.get("CXX", "g++"), _CXX_NEEDED)
    flags = [*_COMMON, "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", *_includes(), *_anonymous()]
    if sanitize:
        flags += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"]
    x86 = os.uname().machine == "x86_64"
    steps = []
    sources = [source for folder in ("core", "cpu", "torch") for source in sorted((KERNELS / folder).glob("*.cpp"))]
    for source in sources:
        if source.name.endswith("_cuda.cpp"):
            continue
        isa = next((f for suffix, f in _CPU_ISA.items() if source.stem.endswith(suffix)), [])
        if isa and not x86:
            continue
        steps.append(Step(source, (compiler, *flags, *isa)))
    link = [compiler, "-shared", "-fopenmp", *(["-fsanitize=address,undefined"] if sanitize else [])]
    return _build("libefft_cpu.so", steps, link, ["-ltorch_cpu", "-lc10"])


def compile_cuda(targets: Sequence[str] = CUDA_TARGETS) -> Path:
    """Build ``libefft_cuda.so`` with nvcc; neither a GPU nor a CUDA build of torch is needed.

    ``targets`` are compute capabilities as nvcc writes them ("80", "90a"). Returns the library's path. Raises
    BuildError when nvcc is missing or reports an error, and for the target "90".
    """
    if "90" in targets:
        raise BuildError('target "90" lacks what the Hopper kernels need; ask for "90a"')
    nvcc = _tool(os.environ.get("NVCC", "nvcc"), "NVIDIA's CUDA toolkit 13 (nvcc), or set NVCC")
    # The -gencode form: the -arch=sm_90a shorthand adds a plain sm_90 pass, which rejects wgmma.
    codes = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in targets]
    portable = max((t for t in targets if t.isdigit()), key=int, default=None)
    if portable is not None:
        codes.append(f"-gencode=arch=compute_{portable},code=compute_{portable}")
    flags = [
        *_COMMON, "-DUSE_CUDA", *codes, "-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr",
        *_includes(), f"-I{_cublas_include(nvcc)}", *(f"-Xcompiler={flag}" for flag in _anonymous()),
    ]  # fmt: skip
    sources = sorted((KERNELS / "cuda").rglob("*.cu")) + sorted((KERNELS / "torch").glob("*_cuda.cpp"))
    steps = [Step(s, (nvcc, *flags, *(["-x", "cu"] if s.suffix == ".cpp" else []))) for s in sources]
    host = (_tool(os.environ.get("CXX", "g++"), _CXX_NEEDED), *_COMMON, "-fPIC", "-fvisibility=hidden", "-Wall")
    steps += [Step(s, (*host, *_includes())) for s in sorted((KERNELS / "core").glob("*.cpp"))]
    BUILD.mkdir(parents=True, exist_ok=True)
    link = [nvcc, "-shared", "-cudart", "static", "-Xlinker", "--no-as-needed"]
    with tempfile.TemporaryDirectory(dir=BUILD) as stubs:
        libraries = [f"-L{stubs}", "-ltorch_cuda", "-ltorch_cpu", "-lc10", "-ldl"]
        _stub(Path(stubs) / "libtorch_cuda.so")
        return _build("libefft_cuda.so", steps, link, libraries)


def _stub(path: Path) -> None:
    """An empty library under torch's soname, so that linking works where torch is CPU-only."""
    compiler = _tool(os.environ.get("CXX", "g++"), _CXX_NEEDED)
    _run([compiler, "-shared", "-x", "c++", os.devnull, f"-Wl,-soname,{path.name}", "-o", str(path)], path.name)


def _includes() -> list[str]:
    return [f"-I{KERNELS / 'include'}", f"-I{_TORCH / 'include'}"]


def _anonymous() -> list[str]:
    """Keep this machine's paths out of the messages that ``__FILE__`` ends up in."""
    return [f"-ffile-prefix-map={_TORCH}=torch", f"-ffile-prefix-map={ROOT}=."]


def _cublas_include(nvcc: str) -> Path:
    """The folder of ``cublasLt.h``: $CUBLAS_INCLUDE, the PyPI package nvidia-cublas or the CUDA toolkit."""
    given = os.environ.get("CUBLAS_INCLUDE")
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    candidates = [Path(given)] if given else []
    candidates += [p / part / "include" for p in packages for part in ("cu13", "cublas")]
    candidates.append(Path(nvcc).resolve().parent.parent / "include")
    for folder in candidates:
        if (folder / "cublasLt.h").exists():
            return folder
    raise BuildError("cublasLt.h not found; pip install nvidia-cublas, or set CUBLAS_INCLUDE to its include folder")


def _build(name: str, steps: Sequence[Step], link: Sequence[str], libraries: Sequence[str]) -> Path:
    objects = BUILD / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    headers = _headers_digest()
    outputs = [objects / f"{_digest(step, headers)}-{step.source.stem}.o" for step in steps]
    linked = [argument for argument in libraries if not argument.startswith("-L")]
    key = hashlib.sha256("\n".join([*(o.name for o in outputs), *link, *linked]).encode()).hexdigest()[:16]
    library = BUILD / key / name
    if library.exists():
        return library
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(_compile_one, steps, outputs))
    library.parent.mkdir(parents=True, exist_ok=True)
    partial = library.with_suffix(f".{os.getpid()}.tmp")
    torch_lib = _TORCH / "lib"
    _run([*link, *map(str, outputs), f"-L{torch_lib}", *libraries, "-o", str(partial)], name)
    partial.replace(library)
    return library


def _compile_one(step: Step, output: Path) -> None:
    if output.exists():
        return
    partial = output.with_suffix(f".{os.getpid()}.tmp")
    _run([*step.command, "-c", str(step.source), "-o", str(partial)], step.source.name)
    partial.replace(output)


def _headers_digest() -> str:
    digest = hashlib.sha256(torch.__version__.encode())
    for header in sorted((KERNELS / "include").rglob("*.*")) + sorted(KERNELS.rglob("*.h")):
        digest.update(header.name.encode() + header.read_bytes())
    return digest.hexdigest()


def _digest(step: Step, headers: str) -> str:
    version = subprocess.run([step.command[0], "--version"], capture_output=True, text=True, check=False).stdout
    flags = " ".join(flag for flag in step.command if not flag.startswith("-I") and "-prefix-map" not in flag)
    digest = hashlib.sha256("\n".join([headers, version, flags]).encode())
    digest.update(step.source.read_bytes())
    return digest.hexdigest()[:16]


def _tool(name: str, what: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BuildError(f"compiler {name!r} not found on PATH; install {what}")
    return path


def _run(command: Sequence[str], what: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line][:5] or result.stderr.splitlines()[-5:]
        raise BuildError(f"compiling {what} failed:\n  " + "\n  ".join(errors))
