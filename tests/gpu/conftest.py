"""Both libraries, loaded once; every test here is skipped where torch sees no GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from builder import ops
from builder.compile import compile_cpu, compile_cuda


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(pytest.mark.skip(reason="no GPU here; `make gpu-check` runs these on one"))


@pytest.fixture(scope="session", autouse=True)
def gpu_libraries() -> None:
    """``$EFFT_CPU_LIBRARY``, ``$EFFT_CUDA_LIBRARY`` and the like for tests may name libraries built elsewhere."""
    if not torch.cuda.is_available():
        return
    major, minor = torch.cuda.get_device_capability()
    target = "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
    ops.load(Path(os.environ.get("EFFT_CPU_LIBRARY") or compile_cpu()))
    torch.ops.load_library(os.environ.get("EFFT_CUDA_LIBRARY") or str(compile_cuda([target])))
    torch.ops.load_library(os.environ.get("EFFT_CPU_TEST_LIBRARY") or str(compile_cpu(tests=True)))
    torch.ops.load_library(os.environ.get("EFFT_CUDA_TEST_LIBRARY") or str(compile_cuda([target], tests=True)))


@pytest.fixture(autouse=True)
def poisoned_memory(gpu_libraries: None) -> None:
    """What the allocator hands out next holds NaN, so that an element no kernel writes is seen."""
    if torch.cuda.is_available():
        blocks = [torch.full((size,), float("nan"), device="cuda") for size in (1 << 26, 1 << 20, 1 << 16, 1 << 10)]
        del blocks
