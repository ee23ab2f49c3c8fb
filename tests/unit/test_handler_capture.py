"""Graphs are made one after the other, whichever have gone meanwhile. The GPU's twin is in tests/gpu/test_graphs.py."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from handler.capture import Capture

_HELD: Counter[int] = Counter()


class Graph:
    """As torch's allocator treats one: of a pool whose last graph has gone there is no further one."""

    pool: int | None = None

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        if pool in _HELD and not _HELD[pool]:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.pool = pool
        _HELD[pool] += 1

    def capture_end(self) -> None:
        """Nothing is enqueued here."""

    def __del__(self) -> None:
        if self.pool is not None:
            _HELD[self.pool] -= 1


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    _HELD.clear()
    pools = iter(range(100))
    stream = SimpleNamespace(wait_stream=lambda other: None, device_index=0)
    fakes: dict[str, Any] = {
        "CUDAGraph": Graph,
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: next(pools),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return Capture(torch.device("cuda", 0))


def test_graphs_share_their_memory(capture: Capture) -> None:
    graphs = [capture(lambda: None) for _ in range(3)]
    assert list(_HELD.values()) == [len(graphs)]


def test_where_the_last_graph_has_gone_there_is_a_next(capture: Capture) -> None:
    for _ in range(2):
        graph = capture(lambda: None)
        del graph
    assert not +_HELD


def test_after_a_first_that_failed_there_is_a_next(capture: Capture) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        capture(fail)
    graph: Any = capture(lambda: None)
    assert _HELD[graph.pool] == 1
