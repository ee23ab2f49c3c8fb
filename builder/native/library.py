"""Compile ``libefft.so`` and lay it out as C and C++ programs look for it: headers, CMake package, pkg-config file."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

from builder.compile import BUILD, CUDA_TARGETS, KERNELS, ROOT, cpu_steps, cuda_steps, host_compiler, nvcc
from builder.errors import BuildError
from builder.objects import build

ABI = 0
"""EFFT_ABI_VERSION of ``efft.h``, the number in the soname."""
NAMES = {"cpu": "libefft.so", "cuda": "libefft_cuda_native.so"}
_SOURCES = KERNELS / "c"
_SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"],
    # ThreadSanitizer does not know OpenMP's barriers, so the engine's team is made of std::thread here.
    "thread": ["-fsanitize=thread", "-fno-omit-frame-pointer", "-g", "-O1", "-DEFFT_STD_THREADS"],
}


def version() -> str:
    """The project's."""
    project = ROOT / "pyproject.toml"
    if project.exists():
        return tomllib.loads(project.read_text())["project"]["version"]
    from importlib.metadata import version as installed

    return installed("efft")


def compile_native(
    device: str = "cpu", *, sanitizer: str | None = None, targets: tuple[str, ...] = CUDA_TARGETS
) -> Path:
    """Build the library for ``device``; needs no torch at run time. Returns its path.

    ``sanitizer``: ``address`` (with undefined behaviour) or ``thread``, CPU only. Raises BuildError.
    """
    extra = _SANITIZERS[sanitizer] if sanitizer else []
    own = [f'-DEFFT_VERSION="{version()}"']
    # Threads of OpenMP's and what runs when a thread ends may outlive a dlclose.
    wishes = [f"--version-script={_SOURCES / 'efft.map'}", f"-soname={NAMES[device]}.{ABI}", "-znodelete", "-zdefs"]
    linker = [word for wish in wishes for word in ("-Xlinker", wish)]
    if device == "cpu":
        steps = cpu_steps(sorted(_SOURCES.glob("*.cpp")), extra, own)
        link = [host_compiler(), "-shared", "-fopenmp", *extra, *linker]
        return build(NAMES[device], steps, link, ["-lpthread"], build_folder=BUILD, root=KERNELS / "include")
    host = sorted(p for p in _SOURCES.glob("*.cpp") if p.name != "cpu.cpp")
    steps = cuda_steps(host, sorted(_SOURCES.glob("*.cu")), targets, own)
    link = [nvcc(), "-shared", "-cudart", "static", *linker]
    return build(NAMES[device], steps, link, ["-ldl", "-lpthread"], build_folder=BUILD, root=KERNELS / "include")


def install(prefix: Path, device: str = "cpu") -> list[Path]:
    """Lay the library out below ``prefix`` for ``find_package(efft)``, pkg-config and plain compilers.

    Files of the same names are replaced. Returns what was written. Raises BuildError.
    """
    library = compile_native(device)
    name, full = NAMES[device], version()
    package = "efft" if device == "cpu" else "efft-cuda"
    target = "efft" if device == "cpu" else "efft_cuda"
    values = {
        "@VERSION@": full, "@LIBRARY@": name, "@SONAME@": f"{name}.{ABI}", "@TARGET@": target, "@PACKAGE@": package,
        "@LINK@": name.removeprefix("lib").removesuffix(".so"), "@DEVICE@": device,
    }  # fmt: skip
    written = [prefix / "include" / "efft" / "efft.h"]
    try:
        for folder in ("include/efft", f"lib/cmake/{package}", "lib/pkgconfig"):
            (prefix / folder).mkdir(parents=True, exist_ok=True)
        _copy(KERNELS / "include" / "efft" / "efft.h", written[0])
        written.append(prefix / "lib" / f"{name}.{full}")
        _copy(library, written[-1])
        for link, to in ((f"{name}.{ABI}", f"{name}.{full}"), (name, f"{name}.{ABI}")):
            _link(prefix / "lib" / link, to)
        for template, file in (
            ("config.cmake.in", f"lib/cmake/{package}/{package}-config.cmake"),
            ("config-version.cmake.in", f"lib/cmake/{package}/{package}-config-version.cmake"),
            ("efft.pc.in", f"lib/pkgconfig/{package}.pc"),
        ):
            text = (_SOURCES / "package" / template).read_text()
            for word, value in values.items():
                text = text.replace(word, value)
            (prefix / file).write_text(text)
            written.append(prefix / file)
    except OSError as error:
        raise BuildError(f"{error.filename or prefix}: {error.strerror}") from error
    return written


def _copy(source: Path, target: Path) -> None:
    """Replaced in one step: a program that has the old library open keeps it."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, partial)
    partial.replace(target)


def _link(path: Path, to: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.unlink(missing_ok=True)
    partial.symlink_to(to)
    partial.replace(path)
