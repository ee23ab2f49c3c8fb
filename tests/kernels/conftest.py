"""The operators' library, and the devices its tests run on."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from builder import ops
from builder.compile import compile_cpu, compile_cuda


@pytest.fixture(scope="session")
def _cpu_library() -> None:
    ops.load(Path(os.environ.get("EFFT_CPU_LIBRARY") or compile_cpu()))


@pytest.fixture(scope="session")
def _cuda_library(_cpu_library: None) -> None:
    torch.ops.load_library(os.environ.get("EFFT_CUDA_LIBRARY") or str(compile_cuda()))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, _cpu_library: None) -> str:
    """The device under test, its library loaded."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device; the GPU check runs this test")
        request.getfixturevalue("_cuda_library")
    return request.param


@pytest.fixture
def efft(device: str) -> SimpleNamespace:
    """``torch.ops.efft``."""
    return torch.ops.efft


@pytest.fixture
def efft_test(device: str) -> SimpleNamespace:
    """``torch.ops.efft_test``: the engines' parts, from libraries that do not ship."""
    for name in dict.fromkeys(("cpu", device)):  # the CPU's holds the schemas
        _load_test_library(name)
    return torch.ops.efft_test


@cache
def _load_test_library(device: str) -> None:
    given = os.environ.get(f"EFFT_{device.upper()}_TEST_LIBRARY")
    compile_device = compile_cpu if device == "cpu" else compile_cuda
    torch.ops.load_library(given or str(compile_device(tests=True)))


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """A served type."""
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(0)
