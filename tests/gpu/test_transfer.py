"""Arrays that go to the device and come back are the same, however often their memory is used again."""

from __future__ import annotations

import numpy as np
import torch

from handler.transfer import to_device, to_host

DEVICE = torch.device("cuda", 0)


def test_what_goes_there_comes_back() -> None:
    generator = np.random.default_rng(0)
    kept = []
    for rows, columns in ((1, 7), (32, 64), (5, 512), (32, 64), (1, 1)) * 20:
        arrays = [generator.integers(0, 30_000, (rows, columns)) for _ in range(3)]
        on_device = to_device(arrays, DEVICE)
        assert all(tensor.is_contiguous() and tensor.device == DEVICE for tensor in on_device)
        outputs = to_host([on_device[0].half() / 30_000, on_device[1].float(), on_device[2][:, :1].double()], DEVICE)
        kept.append((arrays, outputs))
    for (ids, segments, mask), (first, second, third) in kept:  # none was overwritten by a later one
        assert first.dtype == second.dtype == third.dtype == np.float32
        assert np.allclose(first, ids / 30_000, atol=1e-3)
        assert np.array_equal(second, segments.astype(np.float32))
        assert np.array_equal(third, mask[:, :1].astype(np.float32))
