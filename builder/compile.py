"""Compile ``kernels/`` into ``libefft_cpu.so`` and ``libefft_cuda.so``; see ``builder.objects`` for the cache.

Both libraries use torch's stable ABI (``torch/csrc/stable``) and so load in every torch from 2.10 on. Each has a twin
for tests, ``libefft_test_*.so``, which offers the engine's parts as operators in place of the encoder.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from builder.errors import BuildError
from builder.objects import Step, build, run, tool

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the folder that a wheel was installed into."""
_PACKAGED = Path(__file__).resolve().parent / "kernels"
KERNELS = _PACKAGED if _PACKAGED.is_dir() else ROOT / "kernels"
"""A wheel has them within this package: on the import path nothing may be called so (pyproject.toml)."""


def build_folder(environment: Mapping[str, str]) -> Path:
    """Where libraries are built and kept: ``$EFFT_BUILD_DIR``, a checkout's ``build``, else the user's cache (XDG Base
    Directory Specification)."""
    if given := environment.get("EFFT_BUILD_DIR"):
        return Path(given)
    if KERNELS != _PACKAGED:
        return ROOT / "build"
    cache = environment.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "efft"


BUILD = build_folder(os.environ)
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


# By the name that is there to run programs: where a machine lacks the one for compiling, the linker would take the
# static library, whose half of the locales torch's libstdc++ does not know; a number in an error text ends the process
# then.
_SHARED_STANDARD_LIBRARY = ["-Xlinker", "-l:libstdc++.so.6"]


def cpu_targets() -> tuple[str, ...]:
    """What ``libefft_cpu.so`` has code for on this machine's architecture, the portable path first."""
    machine = os.uname().machine
    if machine != "x86_64":
        return (machine,)
    stems = [source.stem for source in (KERNELS / "cpu").glob("*.cpp")]
    return (machine, *(isa.strip("_") for isa in _CPU_ISA if any(stem.endswith(isa) for stem in stems)))


def compile_cpu(*, sanitize: bool = False, tests: bool = False) -> Path:
    """Build ``libefft_cpu.so``, or with ``tests`` its twin, with the C++ compiler in ``$CXX`` (default g++).

    Returns the library's path. Raises BuildError when no compiler is found or it reports an error.
    """
    sources = [s for s in _sources("test/*.cpp" if tests else "torch/*.cpp") if not s.name.endswith("_cuda.cpp")]
    extra = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"] if sanitize else []
    steps = cpu_steps(sources, extra)
    compiler = host_compiler()
    link = [compiler, "-shared", "-fopenmp", *(["-fsanitize=address,undefined"] if sanitize else [])]
    return _build("cpu", tests, steps, link, ["-ltorch_cpu", "-lc10"])


def compile_cuda(targets: Sequence[str] = CUDA_TARGETS, *, tests: bool = False) -> Path:
    """Build ``libefft_cuda.so``, or with ``tests`` its twin, with nvcc; it needs neither a GPU nor torch's CUDA build.

    ``targets`` are compute capabilities as nvcc writes them ("80", "90a"). Returns the library's path. Raises
    BuildError when nvcc is missing or reports an error, and for the target "90".
    """
    bindings = _sources("test/*_cuda.cpp" if tests else "torch/*_cuda.cpp")
    steps = cuda_steps([], bindings, targets)
    BUILD.mkdir(parents=True, exist_ok=True)
    link = [nvcc(), "-shared", "-cudart", "static", "-Xlinker", "--no-as-needed"]
    with tempfile.TemporaryDirectory(dir=BUILD) as stubs:
        libraries = [f"-L{stubs}", "-ltorch_cuda", "-ltorch_cpu", "-lc10", "-ldl"]
        _stub(Path(stubs) / "libtorch_cuda.so")
        return _build("cuda", tests, steps, link, libraries)


def cpu_steps(bindings: Sequence[Path], extra: Sequence[str] = (), own: Sequence[str] = ()) -> list[Step]:
    """The CPU engine and what makes a library of it; ``extra`` flags are for all, ``own`` for the bindings alone."""
    flags = [*_COMMON, "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", *_includes(), *_anonymous(), *extra]
    x86 = os.uname().machine == "x86_64"
    steps = []
    for source in _sources("core/*.cpp", "cpu/*.cpp"):
        isa = next((f for suffix, f in _CPU_ISA.items() if source.stem.endswith(suffix)), [])
        if isa and not x86:
            continue
        steps.append(Step(source, (host_compiler(), *flags, *isa)))
    return [*steps, *(Step(source, (host_compiler(), *flags, *own)) for source in bindings)]


def cuda_steps(
    host: Sequence[Path], bindings: Sequence[Path], targets: Sequence[str], own: Sequence[str] = ()
) -> list[Step]:
    """The CUDA engine and what makes a library of it: ``host`` sources for the C++ compiler, ``bindings`` for nvcc."""
    if "90" in targets:
        raise BuildError('target "90" lacks what the Hopper kernels need; ask for "90a"')
    # The -gencode form: the -arch=sm_90a shorthand adds a plain sm_90 pass, which rejects wgmma.
    codes = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in targets]
    portable = max((t for t in targets if t.isdigit()), key=int, default=None)
    if portable is not None:
        codes.append(f"-gencode=arch=compute_{portable},code=compute_{portable}")
    flags = [
        *_COMMON, "-DUSE_CUDA", *codes, "-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr",
        *_includes(), f"-I{_cublas_include(nvcc())}", *(f"-Xcompiler={flag}" for flag in _anonymous()),
    ]  # fmt: skip
    steps = [Step(s, (nvcc(), *flags)) for s in _sources("cuda/**/*.cu")]
    steps += [Step(s, (nvcc(), *flags, "-x", "cu")) for s in bindings]
    plain = (host_compiler(), *_COMMON, "-fPIC", "-fvisibility=hidden", "-Wall", *_includes(), *_anonymous())
    steps += [Step(s, plain) for s in _sources("core/*.cpp")]
    return [*steps, *(Step(s, (*plain, *own)) for s in host)]


def nvcc() -> str:
    """CUDA's compiler, $NVCC. Raises BuildError where there is none."""
    return tool(os.environ.get("NVCC", "nvcc"), "NVIDIA's CUDA toolkit 13 (nvcc), or set NVCC")


def _sources(*patterns: str) -> list[Path]:
    return [source for pattern in patterns for source in sorted(KERNELS.glob(pattern))]


def _build(device: str, tests: bool, steps: Sequence[Step], link: Sequence[str], libraries: Sequence[str]) -> Path:
    name = f"libefft_{'test_' if tests else ''}{device}.so"
    libraries = [f"-L{_TORCH / 'lib'}", *libraries, *_SHARED_STANDARD_LIBRARY]
    return build(name, steps, link, libraries, build_folder=BUILD, root=KERNELS / "include")


def host_compiler() -> str:
    """The C++ compiler, $CXX or g++. Raises BuildError where there is none."""
    return tool(os.environ.get("CXX", "g++"), _CXX_NEEDED)


def _stub(path: Path) -> None:
    """An empty library under torch's soname, so that linking works where torch is CPU-only."""
    run([host_compiler(), "-shared", "-x", "c++", os.devnull, f"-Wl,-soname,{path.name}", "-o", str(path)], path.name)


def _includes() -> list[str]:
    return [f"-I{KERNELS / 'include'}", f"-I{_TORCH / 'include'}"]


def _anonymous() -> list[str]:
    """Keep this machine's paths out of the messages that ``__FILE__`` ends up in."""
    return [f"-ffile-prefix-map={_TORCH}=torch", f"-ffile-prefix-map={KERNELS.parent}=."]


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
