"""The kernels' libraries, compiled for this machine."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from builder import ops
from builder.compile import compile_cpu, compile_cuda

VARIABLES = {"cpu": "EFFT_CPU_LIBRARY", "cuda": "EFFT_CUDA_LIBRARY"}
"""Environment variables that may name libraries built elsewhere; tests and sanitizers read them, too."""


@functools.cache
def library(device: str) -> Path:
    """The library for ``cpu``, or the one for the GPU of this machine (not for all that an archive carries).

    Raises BuildError when it cannot be compiled.
    """
    given = os.environ.get(VARIABLES[device])
    if given:
        return Path(given)
    return compile_cpu() if device == "cpu" else compile_cuda([_target()])


def load(device: str) -> None:
    """Register the operators for a device with torch, once per process. Raises BuildError as :func:`library`."""
    ops.load(library("cpu"))
    if device == "cuda":
        torch.ops.load_library(str(library("cuda")))


def _target() -> str:
    major, minor = torch.cuda.get_device_capability()
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
