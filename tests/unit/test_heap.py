"""Memory given back between batches: seldom, and without a fault where the C library has nothing for it."""

from __future__ import annotations

import ctypes

import pytest

from handler import heap


def test_once_in_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(heap.time, "monotonic", lambda: now[0])
    calls: list[float] = []
    trimmer = heap.Trimmer(30.0, lambda: calls.append(now[0]))
    for second in range(100):
        now[0] = float(second)
        trimmer.tick()
    assert calls == [30.0, 60.0, 90.0]


def test_pages_go_back_to_the_system() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("the C library has no malloc_trim")
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size = 64 << 10  # below what glibc maps on its own, so that a last block on the heap pins all before it
    blocks = [libc.malloc(size) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    pin, before = libc.malloc(size), resident()
    for block in blocks:
        libc.free(block)
    heap.Trimmer(0.0).tick()
    libc.free(pin)
    assert before - resident() > 40 << 20


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    heap.Trimmer(0.0).tick()
