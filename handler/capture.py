"""CUDA graphs of what a function enqueues, by torch ("CUDA Graphs" in its notes on CUDA semantics)."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)


class Replayable(Protocol):
    """A captured pass."""

    def replay(self) -> None:
        """Enqueue it again."""


class Capture:
    """Makes graphs of what a function enqueues on a CUDA device; all share their memory, so no two may run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._made: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, enqueue: Callable[[], None]) -> Replayable:
        """The graph; raises what ``enqueue`` or CUDA raises, after which the device is as before."""
        if not self._made:  # of a pool whose last graph has gone, torch's allocator refuses any further one
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        collects = gc.isenabled()
        gc.disable()  # what it might free now would be freed within the capture
        try:
            with torch.cuda.stream(self._stream):
                # Other threads may allocate and wait meanwhile; of this one CUDA refuses what cannot be captured.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    enqueue()
                except BaseException:
                    self._abandon(graph)
                    raise
                self._end(graph)
        finally:
            if collects:
                gc.enable()
        self._made.add(graph)
        return graph

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            self._stop_allocating()
            raise

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            self._end(graph)
        except RuntimeError:
            logger.debug("a capture was abandoned")

    def _stop_allocating(self) -> None:
        """torch before 2.12 takes a capture that ended with an error to be still under way, and then fails when its
        cache is emptied (pytorch/pytorch#180395); later ones raise here."""
        try:
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
        except RuntimeError:
            logger.debug("the allocator knew already")
