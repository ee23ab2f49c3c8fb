from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

import benchmarks.workloads
from benchmarks.workloads import DISTRIBUTIONS, make_batch, make_workload, rand_r

PUBLISHED = json.loads(Path(benchmarks.workloads.__file__).with_name("workloads.json").read_text())


@pytest.mark.parametrize("size", PUBLISHED["gpu"])
def test_rand_r_draws_the_published_lengths(size: str) -> None:
    assert list(make_workload(size, "rand_r").lengths) == PUBLISHED["gpu"][size]


@pytest.mark.parametrize("size", PUBLISHED["cpu"])
def test_uniform_gives_the_published_lengths(size: str) -> None:
    assert list(make_workload(size, "uniform").lengths) == PUBLISHED["cpu"][size]


def test_rand_r_is_glibcs() -> None:
    ctypes = pytest.importorskip("ctypes")
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        pytest.skip("no glibc on this machine")
    seed = ctypes.c_uint(7)
    assert list(islice(rand_r(7), 20)) == [libc.rand_r(ctypes.byref(seed)) for _ in range(20)]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("size", ["1x16", "3x40", "16x100"])
def test_lengths_fit_the_padded_tensor(size: str, distribution: str) -> None:
    workload = make_workload(size, distribution)
    assert workload.name == size
    assert all(1 <= n <= workload.padded for n in workload.lengths)
    batch = make_batch(workload, vocabulary=50)
    assert batch.mask.sum(1).tolist() == list(workload.lengths)
    assert batch.ids.shape == (workload.batch, workload.padded)
    assert (batch.ids[batch.mask == 0] == 0).all()
    assert (batch.ids[batch.mask == 1] > 0).all()


def test_rows_are_the_batch_without_its_padding() -> None:
    batch = make_batch(make_workload("5x20", "uniform"), vocabulary=50)
    for index, row in enumerate(batch.rows()):
        length = batch.workload.lengths[index]
        assert row.ids.tolist() == [batch.ids[index, :length].tolist()]
        assert row.workload.padding_share == 0


@pytest.mark.parametrize("size", ["8", "x8", "8x", "0x8", "axb"])
def test_a_size_that_cannot_be_read_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match="batch x length"):
        make_workload(size, "full")
