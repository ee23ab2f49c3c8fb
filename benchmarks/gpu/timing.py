"""Times on the device: medians between events of a busy stream."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch

from benchmarks.timing import Timing

Call = Callable[[], object]


def captured(call: Call) -> Call:
    """``call`` as a CUDA graph of its own; returns its replay, which keeps ``call`` and what it reads alive."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay(keep: object = (call, result)) -> None:
        graph.replay()

    return replay


def interleave(calls: Mapping[str, Call], milliseconds: float = 60.0, rounds: int = 5) -> dict[str, Timing]:
    """Each call's times, the calls taking turns ``rounds`` times, in a new random order each, for ``milliseconds``
    altogether each."""
    counts = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        once = max(statistics.median(intervals(call, 3)), 1e-3)
        counts[name] = max(3, min(100, int(milliseconds / rounds / once)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            samples[name] += intervals(calls[name], counts[name])
    return {name: Timing.of([1e-3 * time for time in times]) for name, times in samples.items()}


def seconds(call: Callable[[], object]) -> float:
    """Seconds of all that ``call`` enqueues, from an idle device on; what it returns is kept until then."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    kept = call()
    stop.record()
    torch.cuda.synchronize()
    del kept
    return start.elapsed_time(stop) / 1e3


def intervals(call: Call, count: int) -> list[float]:
    """Milliseconds of ``count`` calls enqueued without waiting, so that the host's work hides behind the device's."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    call()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in pairwise(events)]
