"""The kernels' libraries, compiled for this machine."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from builder import ops
from builder.compile import compile_cpu, compile_cuda, cpu_targets

if TYPE_CHECKING:
    from builder.archive import LibraryFile

VARIABLES = {
    ("cpu", False): "EFFT_CPU_LIBRARY",
    ("cuda", False): "EFFT_CUDA_LIBRARY",
    ("cpu", True): "EFFT_CPU_TEST_LIBRARY",
    ("cuda", True): "EFFT_CUDA_TEST_LIBRARY",
}
"""Environment variables that may name libraries built elsewhere, by device and whether they are the ones that only
tests use; tests and sanitizers read them, too."""


@functools.cache
def library(device: str, tests: bool = False) -> Path:
    """The library for ``cpu``, or the one for the GPU of this machine (not for all that an archive carries).

    ``tests``: the engine's parts as operators, in place of the encoder.

    Raises BuildError when it cannot be compiled.
    """
    given = os.environ.get(VARIABLES[device, tests])
    if given:
        return Path(given)
    return compile_cpu(tests=tests) if device == "cpu" else compile_cuda([_target()], tests=tests)


def load(device: str) -> None:
    """Register the operators for a device with torch, once per process. Raises BuildError as :func:`library`."""
    ops.load(library("cpu"))
    if device == "cuda":
        torch.ops.load_library(str(library("cuda")))


def carried(device: str) -> list[LibraryFile]:
    """What an archive for this machine carries: the CPU's library, for ``cuda`` its GPU's too. Raises BuildError as
    :func:`library`."""
    from builder.archive import LibraryFile  # transformers comes with it, which most callers do without

    found = [LibraryFile(library("cpu"), "cpu", cpu_targets())]
    return found if device == "cpu" else [*found, LibraryFile(library("cuda"), "cuda", [_target()])]


@functools.cache
def load_parts() -> None:
    """Register the engine's parts for the GPU, once per process. Raises BuildError as :func:`library`."""
    for device in ("cpu", "cuda"):
        torch.ops.load_library(str(library(device, tests=True)))


def _target() -> str:
    major, minor = torch.cuda.get_device_capability()
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
