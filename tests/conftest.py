from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from builder import ops
from builder.compile import compile_cpu
from tests import fresh

# What starts the tests may have these signals ignored (nohup, a job in the background of a script), and programs hand
# that on; the tests send them to programs of their own.
for _signal, _default in (
    (signal.SIGHUP, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler),
):  # fmt: skip
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, _default)

# Deadlines would time a shared machine, not the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


fresh.take_over_the_gate()

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes with a thread for each core each would wait for one another at every barrier. Tests that are
    # about threads set their number; what the tests start sets its own, too, or has one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

_MARKS = {"e2e": ("e2e", "slow"), "gpu": ("gpu",)}
"""By the folder a test lies in."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder."""
    for item in items:
        for mark in _MARKS.get(item.path.relative_to(Path(__file__).parent).parts[0], ()):
            item.add_marker(mark)


@pytest.fixture(scope="session")
def cpu_library() -> Path:
    """``libefft_cpu.so``, compiled (or taken from the cache) and loaded into this process."""
    library = compile_cpu()
    ops.load(library)
    return library
