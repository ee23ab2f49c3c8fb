"""Packed ids in place of a padded batch: the same encoder, without a batch that only exists to be taken apart again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.kernels import families, reference
from tests.kernels.batches import Batch, joined, ragged
from tests.kernels.criterion import assert_close
from tests.kernels.families import SPECS
from tests.kernels.test_encoder import SHAPES, on, prepared, run, tensors

RAGGED = [5, 1, 37, 0, 64, 2]
OUTPUTS = ("hidden", "first", "mean")


def picked(result: Tensor, batch: Batch, output: str) -> Tensor:
    """Of a padded result what a packed one has."""
    return result[batch.mask.bool().to(result.device)] if output == "hidden" else result


@pytest.mark.parametrize("lengths", [RAGGED, [1], [130], [33] * 9], ids=["ragged", "one", "long", "equal"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ["bert", "pre_norm_projection", "roberta", "roberta_0_1"])
def test_as_plain_pytorch_has_it(efft, device, dtype, generator, name, output, lengths) -> None:
    shape = SHAPES[name]
    weights = reference.random_weights(shape, generator).to(dtype)
    batch = ragged(lengths, generator)
    truth = reference.encoder(*batch, weights.to(torch.float64), shape, output)
    plain = reference.encoder(*batch, weights, shape, output)
    ready = prepared(efft, on(device, weights), shape)
    actual = run(efft, joined(batch).to(device), ready, shape, output)
    assert_close(actual.cpu(), picked(plain, batch, output), picked(truth, batch, output))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.usefixtures("_cpu_library")
def test_the_same_bits_as_padded(generator, name, output) -> None:
    """On the CPU; a GPU may take other kernels, as it knows the number of tokens."""
    efft, spec = torch.ops.efft, SPECS[name]
    weights = efft.prepare_weights(tensors(families.random_weights(spec, generator)), spec.text())
    batch = ragged(RAGGED, generator)
    padded = efft.encode(*batch, weights, spec.text(), output)
    packed = efft.encode(*joined(batch), weights, spec.text(), output)
    assert torch.equal(packed, picked(padded, batch, output))


def test_a_column_of_its_own_is_read_as_well(efft, device, generator) -> None:
    shape = SHAPES["bert"]
    weights = prepared(efft, on(device, reference.random_weights(shape, generator)), shape)
    batch = joined(ragged(RAGGED, generator)).to(device)
    whole = batch._replace(mask=batch.mask.contiguous())
    assert torch.equal(run(efft, whole, weights, shape, "first"), run(efft, batch, weights, shape, "first"))


def test_nothing_and_empty_texts(efft, device, generator) -> None:
    shape = SHAPES["bert"]
    weights = prepared(efft, on(device, reference.random_weights(shape, generator)), shape)
    empty = joined(ragged([0, 0], generator)).to(device)
    assert run(efft, empty, weights, shape, "hidden").shape == (0, shape.hidden)
    assert not run(efft, empty, weights, shape, "first").any()
    nothing = Batch(empty.ids, empty.segments, empty.mask[:1])
    assert run(efft, nothing, weights, shape, "first").shape == (0, shape.hidden)


@pytest.mark.usefixtures("_cpu_library")
@pytest.mark.parametrize(
    ("offsets", "longest", "message"),
    [
        ([0, 5, 8], 5, "ascend from 0 to 9"),
        ([1, 5, 9], 5, "got 1 behind 0"),
        ([0, 6, 9], 5, "by at most 5, got 6"),
        ([0, 5, 4, 9], 5, "got 4 behind 5"),
        ([0, -1, 9], 9, "got -1 behind 0"),
        ([0, 4], 4, "at most 1 sequences of 4, got 9 tokens"),
        ([], 9, "got none"),
    ],
)
def test_offsets_that_are_none_are_refused(generator, offsets: list[int], longest: int, message: str) -> None:
    """On the CPU, and what shapes tell on both."""
    shape = SHAPES["bert"]
    weights = reference.random_weights(shape, generator)
    ids = torch.zeros(9, dtype=torch.int64)
    column = torch.tensor(offsets, dtype=torch.int64).unsqueeze(1).expand(-1, longest)
    with pytest.raises(RuntimeError, match=message):
        run(torch.ops.efft, Batch(ids, ids, column), weights, shape)


@pytest.mark.usefixtures("_cpu_library")
def test_shapes_that_do_not_belong_together_are_refused(generator) -> None:
    shape = SHAPES["bert"]
    weights = reference.random_weights(shape, generator)
    ids, mask = torch.zeros(9, dtype=torch.int64), torch.tensor([[0], [9]]).expand(-1, 9)
    efft: SimpleNamespace = torch.ops.efft
    with pytest.raises(RuntimeError, match="segments: expected size 9"):
        run(efft, Batch(ids, ids[:8], mask), weights, shape)
    with pytest.raises(RuntimeError, match="mask: expected 2 dimensions"):
        run(efft, Batch(ids, ids, mask[:, 0]), weights, shape)
    with pytest.raises(RuntimeError, match="ids: index 7000 is out of range"):
        run(efft, Batch(ids + 7000, ids, mask), weights, shape)
