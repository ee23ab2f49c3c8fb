from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from builder import ops
from builder.compile import compile_cpu

# Deadlines would time a shared machine, not the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def cpu_library() -> Path:
    """``libefft_cpu.so``, compiled (or taken from the cache) and loaded into this process."""
    library = compile_cpu()
    ops.load(library)
    return library
