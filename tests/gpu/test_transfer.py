"""Arrays that go to the device and come back are the same, however often their memory is used again."""

from __future__ import annotations

import numpy as np
import torch

from handler.transfer import Staging

DEVICE = torch.device("cuda", 0)


def test_what_goes_there_comes_back() -> None:
    generator, staging = np.random.default_rng(0), Staging(DEVICE)
    kept = []
    for rows, columns in ((1, 7), (32, 64), (5, 512), (32, 64), (1, 1)) * 20:
        arrays = [generator.integers(0, 30_000, (rows, columns)) for _ in range(3)]
        on_device = staging.to_device(arrays)
        assert all(tensor.is_contiguous() and tensor.device == DEVICE for tensor in on_device)
        outputs = staging.to_host([on_device[0].half() / 30_000, on_device[1].float(), on_device[2][:, :1].double()])
        kept.append((arrays, outputs))
    for (ids, segments, mask), (first, second, third) in kept:  # none was overwritten by a later one
        assert first.dtype == second.dtype == third.dtype == np.float32
        assert np.allclose(first, ids / 30_000, atol=1e-3)
        assert np.array_equal(second, segments.astype(np.float32))
        assert np.array_equal(third, mask[:, :1].astype(np.float32))


def test_packed_arrays_of_several_lengths() -> None:
    generator, staging = np.random.default_rng(0), Staging(DEVICE)
    for tokens, rows in ((7, 1), (1184, 32), (1, 1), (16384, 500)) * 5:
        arrays = [generator.integers(0, 30_000, size) for size in (tokens, tokens, rows + 1)]
        on_device = staging.to_device(arrays)
        assert all(tensor.is_contiguous() and tensor.dtype == torch.int64 for tensor in on_device)
        back = staging.to_host([tensor.double()[:, None] for tensor in on_device])
        for array, output in zip(arrays, back, strict=True):
            assert output.shape == (len(array), 1)
            assert np.array_equal(output[:, 0], array)


def test_a_pass_that_was_never_waited_for_loses_nothing() -> None:
    staging = Staging(DEVICE)
    busy = torch.ones(4096, 4096, device=DEVICE)
    for _ in range(20):
        busy = busy @ busy  # what is sent waits behind this
    first = staging.to_device([np.arange(1000)])
    second = staging.to_device([np.arange(1000) + 5000])
    (landed,) = staging.to_host([torch.stack([first[0], second[0]])])
    assert np.array_equal(landed, np.stack([np.arange(1000), np.arange(1000) + 5000]))
