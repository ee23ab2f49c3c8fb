"""On the CPU nothing is copied; outputs become fp32. The GPU's twin is tests/gpu/test_transfer.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handler import transfer
from handler.transfer import Staging

CPU = torch.device("cpu")


def test_arrays_are_the_tensors_memory() -> None:
    arrays = [np.arange(6).reshape(2, 3) for _ in range(3)]
    tensors = Staging(CPU).to_device(arrays)
    assert [tensor.data_ptr() for tensor in tensors] == [array.ctypes.data for array in arrays]


def test_outputs_are_fp32() -> None:
    (half, single) = Staging(CPU).to_host([torch.ones(2, 3, dtype=torch.float16) / 3, torch.ones(1)])
    assert half.dtype == single.dtype == np.float32
    assert np.allclose(half, 1 / 3, atol=1e-3)


@pytest.mark.parametrize(
    ("workers", "wanted", "expected"),
    [(1, None, "spin"), (8, None, "block"), (8, "spin", "spin"), (1, "block", "block"), (2, "nonsense", "block")],
)
def test_how_a_worker_waits(monkeypatch: pytest.MonkeyPatch, workers: int, wanted: str | None, expected: str) -> None:
    monkeypatch.delenv(transfer.WAIT, raising=False)
    if wanted:
        monkeypatch.setenv(transfer.WAIT, wanted)
    transfer.wait_as(workers)
    assert transfer.waiting() == expected
    transfer.wait_as(1)
