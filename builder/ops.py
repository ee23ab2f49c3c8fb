"""The operators of ``kernels/torch/schema.cpp`` in this process."""

from __future__ import annotations

from pathlib import Path

import torch

from handler.formats import fakes

_loaded = False


def load(library: Path) -> None:
    """Register the operators of ``library`` with torch, once per process, and their fakes beside them."""
    global _loaded
    if _loaded:
        return
    torch.ops.load_library(str(library))
    fakes.register()
    _loaded = True


def ensure_loaded() -> None:
    """Compile the CPU library and load it unless one is. Raises BuildError as compiling does."""
    if _loaded or hasattr(torch.ops.efft, "slots"):
        return
    from builder.compile import compile_cpu

    load(compile_cpu())
