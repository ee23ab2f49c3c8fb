"""The whole encoder against plain PyTorch."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.kernels import reference
from tests.kernels.batches import Batch, ragged
from tests.kernels.criterion import assert_close
from tests.kernels.reference import Shape, Weights

SHAPES = {
    "bert": Shape(),
    "wide_head": Shape(hidden=256, heads=2, intermediate=512),
    "head_80": Shape(hidden=240, heads=3, intermediate=500),
    "hidden_312": Shape(layers=3, hidden=312, heads=12, intermediate=1200),
    "odd_intermediate": Shape(hidden=50, heads=5, intermediate=131, activation="gelu_tanh"),
    "projection": Shape(hidden=96, heads=3, intermediate=128, embedding=38),
    "pre_norm": Shape(hidden=96, heads=3, intermediate=192, pre_norm=True, activation="relu", epsilon=1e-5),
    "pre_norm_projection": Shape(hidden=96, heads=3, embedding=64, pre_norm=True),
    "roberta": Shape(positions="ids", pad=1),
    "roberta_0_1": Shape(positions="mask", offset=2),
}
LENGTHS = {
    "one_token": [1],
    "long": [130],
    "ragged": [5, 1, 37, 0, 64, 2],
    "tile_edges": [15, 16, 17, 31, 33, 48, 100],
    "empty": [0],
}


def run(efft: SimpleNamespace, batch: Batch, weights: Weights, shape: Shape, output: str = "hidden") -> Tensor:
    """The operator on the tensors' device."""
    return efft.encode(*batch, tensors(weights), shape.spec.text(), output)


def tensors(weights: Weights) -> list[Tensor]:
    """The weights in the operators' order."""
    return [getattr(weights, name) for name in Weights.__dataclass_fields__]


def on(device: str, weights: Weights) -> Weights:
    """The weights on ``device``."""
    return Weights(*(getattr(weights, name).to(device) for name in Weights.__dataclass_fields__))


def prepared(efft: SimpleNamespace, weights: Weights, shape: Shape) -> Weights:
    """The weights with the matrices in the device's own form."""
    return Weights(*efft.prepare_weights(tensors(weights), shape.spec.text()))


def compare(efft, device, dtype, shape, lengths, generator, output="hidden") -> None:
    weights = reference.random_weights(shape, generator).to(dtype)
    batch = ragged([*lengths, 0] if max(lengths) else [*lengths, 1], generator) if output != "hidden" else None
    batch = batch or Batch(*(t[:, : max(max(lengths), 1)] for t in ragged([*lengths, 1], generator)))
    truth = reference.encoder(*batch, weights.to(torch.float64), shape, output)
    plain = reference.encoder(*batch, weights, shape, output)
    actual = run(efft, batch.to(device), prepared(efft, on(device, weights), shape), shape, output)
    assert_close(actual.cpu(), plain, truth)


@pytest.mark.usefixtures("_cpu_library")
def test_fewer_steps_than_slices(dtype, generator) -> None:
    """Products too shallow for the CPU's prefetching to be shared out over their steps."""
    compare(torch.ops.efft, "cpu", dtype, Shape(hidden=2, heads=1, intermediate=3), LENGTHS["ragged"], generator)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_hidden_states(efft, device, dtype, generator, shape, lengths) -> None:
    compare(efft, device, dtype, shape, lengths, generator)


@pytest.mark.parametrize("output", ["first", "mean"])
@pytest.mark.parametrize("name", ["bert", "hidden_312", "projection", "pre_norm", "roberta", "roberta_0_1"])
def test_reduced_outputs(efft, device, dtype, generator, name, output) -> None:
    compare(efft, device, dtype, SHAPES[name], LENGTHS["ragged"], generator, output)


def test_the_mean_of_a_long_text_loses_no_digits(efft, device, generator) -> None:
    """Of its own rows: added one after the other 2,900 of them are off by ten roundings and more."""
    shape = Shape(layers=1)
    weights = on(device, reference.random_weights(shape, generator, positions=3000))
    batch = ragged([2900], generator).to(device)
    truth = run(efft, batch, weights, shape).double().mean(1)
    mean = run(efft, batch, weights, shape, "mean")
    assert float((mean - truth).norm() / truth.norm()) < 4 * 2**-24


def test_plain_arena_equals_prepared(efft, device, dtype, generator) -> None:
    shape = SHAPES["bert"]
    weights = on(device, reference.random_weights(shape, generator).to(dtype))
    batch = ragged([7, 3], generator).to(device)
    plain = run(efft, batch, weights, shape)
    actual = run(efft, batch, prepared(efft, weights, shape), shape)
    if device == "cpu":
        assert torch.equal(actual, plain)
    else:  # prepared, the norms are folded into the matrices, and other kernels run
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(actual, plain, rtol=tolerance, atol=tolerance)


def test_item_of_a_batch_equals_the_item_alone(efft, device, dtype, generator) -> None:
    shape = SHAPES["hidden_312"]
    weights = prepared(efft, on(device, reference.random_weights(shape, generator).to(dtype)), shape)
    lengths = [40, 9, 33]
    batch = ragged(lengths, generator).to(device)
    together = run(efft, batch, weights, shape)
    for b, length in enumerate(lengths):
        alone = run(efft, Batch(*(t[b : b + 1, :length] for t in batch)), weights, shape)
        # On a GPU the number of rows decides which kernel multiplies, and in which order it sums.
        tolerance = (8 if device == "cpu" else 32) * torch.finfo(dtype).eps
        torch.testing.assert_close(together[b : b + 1, :length], alone, rtol=tolerance, atol=tolerance)


def test_pads_are_zero_and_their_ids_never_read(efft, device, dtype, generator) -> None:
    shape = SHAPES["bert"]
    weights = prepared(efft, on(device, reference.random_weights(shape, generator).to(dtype)), shape)
    batch = ragged([4, 9], generator)
    poisoned = batch._replace(ids=batch.ids.masked_fill(batch.mask == 0, 10**9))
    out = run(efft, poisoned.to(device), weights, shape)
    assert torch.equal(out, run(efft, batch.to(device), weights, shape))
    assert not out[0, 4:].any()


@pytest.mark.parametrize("name", ["bert", "roberta", "roberta_0_1"])
def test_holes_in_the_mask(efft, device, dtype, generator, name) -> None:
    shape = SHAPES[name]
    weights = reference.random_weights(shape, generator).to(dtype)
    batch = ragged([12, 12], generator)
    batch.mask[0, [0, 3, 4]] = 0
    truth = reference.encoder(*batch, weights.to(torch.float64), shape)
    plain = reference.encoder(*batch, weights, shape)
    assert_close(run(efft, batch.to(device), on(device, weights), shape).cpu(), plain, truth)


@pytest.mark.parametrize("output", ["hidden", "first", "mean"])
def test_a_batch_of_no_sequences(efft, device, dtype, generator, output) -> None:
    shape = SHAPES["bert"]
    weights = prepared(efft, on(device, reference.random_weights(shape, generator).to(dtype)), shape)
    none = Batch(*(t[:0] for t in ragged([7], generator))).to(device)
    expected = (0, 7, shape.hidden) if output == "hidden" else (0, shape.hidden)
    assert run(efft, none, weights, shape, output).shape == expected


def test_number_of_threads_does_not_change_the_result(efft, device, dtype, generator) -> None:
    shape = SHAPES["hidden_312"]
    weights = prepared(efft, on(device, reference.random_weights(shape, generator).to(dtype)), shape)
    batch = ragged([150, 3, 61], generator).to(device)
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 7, 16):  # 16: more than these rows have AMX tiles
            torch.set_num_threads(threads)
            outputs.append(run(efft, batch, weights, shape))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])


def test_several_threads_at_once(efft, device, generator) -> None:
    shape = SHAPES["bert"]
    weights = prepared(efft, on(device, reference.random_weights(shape, generator)), shape)
    batches = [ragged([3 + 5 * i, 20 - i], generator).to(device) for i in range(4)]
    expected = [run(efft, batch, weights, shape) for batch in batches]
    failures: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not torch.equal(run(efft, batches[index], weights, shape), expected[index]):
                failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("pad", [-1, 0, 1, 49])
def test_positions_by_pad_id(efft, device, dtype, generator, pad) -> None:
    """Pad ids within texts take the pad's row, and pads that the mask hides count as well where they are other ids."""
    shape = Shape(positions="ids", pad=pad)
    weights = reference.random_weights(shape, generator).to(dtype)
    batch = ragged([12, 9, 12, 1], generator)
    batch.ids[0, [0, 5, 6]] = max(pad, 0)
    batch.ids[1, 9:] = max(pad, 0)
    batch.mask[2, :4] = 0  # pads on the left, of which two are other ids
    batch.ids[2, :2] = max(pad, 0)
    for output in ("hidden", "first", "mean"):
        truth = reference.encoder(*batch, weights.to(torch.float64), shape, output)
        plain = reference.encoder(*batch, weights, shape, output)
        assert_close(run(efft, batch.to(device), on(device, weights), shape, output).cpu(), plain, truth)


BAD = {
    "ids": lambda a: a["batch"].ids.__setitem__((0, 0), 50),
    "segments": lambda a: a["batch"].segments.__setitem__((0, 0), -1),
    "position": lambda a: a.update(shape=replace(a["shape"], offset=599)),
    "heads": lambda a: a.update(shape=replace(a["shape"], heads=5)),
    "activation": lambda a: a.update(shape=replace(a["shape"], activation="swish")),
    "offset": lambda a: a.update(shape=replace(a["shape"], offset=2**32)),
    "layers": lambda a: a.update(shape=replace(a["shape"], layers=10**6)),
    "output": lambda a: a.update(output="last"),
    "matrices": lambda a: a.update(weights=replace(a["weights"], matrices=a["weights"].matrices[1:])),
    "vectors": lambda a: a.update(weights=replace(a["weights"], vectors=a["weights"].vectors[1:])),
    "segment": lambda a: a.update(weights=replace(a["weights"], segment=a["weights"].segment[:, 1:])),
    "mask": lambda a: a.update(batch=a["batch"]._replace(mask=a["batch"].mask.bool())),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments_are_named(efft, device, generator, argument) -> None:
    if device == "cuda" and argument in ("ids", "segments", "position"):
        pytest.skip("a CUDA call does not wait for the values of its indices")
    arguments = {
        "weights": reference.random_weights(Shape(), generator),
        "batch": ragged([4, 2], generator),
        "shape": Shape(),
        "output": "hidden",
    }
    BAD[argument](arguments)
    weights, batch = on(device, arguments["weights"]), arguments["batch"].to(device)
    with pytest.raises(RuntimeError, match=rf"\b{argument}\b"):
        run(efft, batch, weights, arguments["shape"], arguments["output"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("encoder/2 layers=2", "spec: must begin with 'encoder/1', begins with 'encoder/2'"),
        ("", "spec: must begin with 'encoder/1', begins with ''"),
        ("+ colour=red", "spec: unknown key 'colour'"),
        ("+ layers=2", "spec: layers is given twice"),
        ("+ activation", "spec: expected key=value, got 'activation'"),
        ("encoder/1 layers=2 hidden=64 heads=2", "spec: intermediate is missing"),
        ("+ norm=rms", "norm: expected post or pre, got 'rms'"),
        ("+ positions=rotary", "positions: expected slot, mask, ids or none, got 'rotary'"),
        ("+ positions=ids", "pad: positions=ids count from it; it is missing"),
        ("+ positions=ids pad=1 offset=2", "offset: positions=ids begin behind the pad id; leave it out"),
        ("+ positions=ids pad=-2", "pad: expected -1 to 2147483646, got -2"),
        ("+ pad=1", "pad: only positions=ids count from it; leave it out"),
        ("+ offset=4294967296", "offset: expected 0 to 2147483647, got 4294967296"),
        ("+ offset=1e3", "offset: expected a whole number, got '1e3'"),
        ("+ epsilon=-1", "epsilon: must not be negative, got -1"),
        ("+ epsilon=nan", "epsilon: must not be negative, got nan"),
        ("+ head=0", "head: expected a positive number, got 0"),
        ("+ head=33", "heads: the head size must be even and at most 128, got 33"),
        ("+ kv_heads=3", "kv_heads: 3 do not divide heads 2"),
        ("+ normalise=batch", "normalise: expected layer or rms, got 'batch'"),
        ("+ gated=yes", "gated: expected 0 or 1, got 'yes'"),
        ("+ first_norm=0", "first_norm: norms behind the blocks are never absent; leave it out"),
        ("+ rotary=complex", "rotary: expected none, halves or interleaved, got 'complex'"),
        ("+ rotary=halves rotary_size=15", "rotary_size: must be even, got 15"),
        ("+ rotary=halves rotary_size=34", "rotary_size: expected 2 to 32, got 34"),
        ("+ rotary_size=8", "rotary_size: only rotary=halves and interleaved have one; leave it out"),
        ("+ window=8", "window: only local layers have one; leave it out"),
        ("+ local=01", "window: expected 1 to 2147483648, got 0"),
        ("+ local=011 window=8", "local: expected a 0 or 1 for each of 2 layers, got '011'"),
        ("+ scale=0", "scale: must be positive, got 0"),
        ("+ scale=inf", "scale: must be positive, got inf"),
        ("+ relative=t5", "relative: expected none, buckets, alibi or disentangled, got 't5'"),
        ("+ relative=buckets", "buckets: expected 4 to 1048576, got 0"),
        ("+ relative=buckets buckets=32 distance=8", "distance: expected 9 to 1048576, got 8"),
        ("+ buckets=32", "buckets: only relative=buckets and disentangled have them; leave it out"),
        ("+ relative=disentangled distance=512", "relative: disentangled needs c2p=1 or p2c=1"),
        ("+ relative=disentangled c2p=1 buckets=8 distance=5", "distance: expected 6 to 1048576, got 5"),
        (
            "+ relative=disentangled c2p=1 distance=9 rotary=halves",
            "rotary: relative=disentangled has positions of its",
        ),
        (
            "+ relative=disentangled c2p=1 distance=9 local=01 window=8",
            "local: relative=disentangled sees every key; leave it out",
        ),
        ("+ p2c=1", "p2c: only relative=disentangled has it; leave it out"),
        ("+ layer_of=0,2", "layer_of: expected 0 to 1, got 2"),
        ("+ layer_of=0", "layer_of: expected a number for each of 2 layers, got 1"),
        ("+ layer_of=0,", "layer_of: expected a whole number, got ''"),
        ("+ dropout_token=-2", "dropout_token: expected -1 to 2147483647, got -2"),
        ("+ positions=none offset=2", "offset: positions=none have no table; leave it out"),
        ("encoder/1 layers=100000 hidden=64 heads=2 intermediate=8", "layers: expected 1 to 4096, got 100000"),
        ("encoder/1 layers=4096 hidden=131072 heads=1024 intermediate=131072", "more than any memory holds"),
        ("encoder/1 layers=99999999999999999999 hidden=64 heads=2 intermediate=8", "layers: expected a whole number"),
    ],
)
@pytest.mark.usefixtures("_cpu_library")
def test_a_spec_that_cannot_be_is_refused_in_one_line(change, message) -> None:
    text = Shape().spec.text() + change[1:] if change.startswith("+") else change
    with pytest.raises(RuntimeError) as caught:
        torch.ops.efft.slots(text)
    assert message in str(caught.value).splitlines()[0]


def test_a_number_of_weights_is_said(efft, device, generator) -> None:
    weights = tensors(reference.random_weights(Shape(), generator))[:4]
    with pytest.raises(RuntimeError, match="weights: expected 5 tensors"):
        efft.encode(*ragged([3], generator), weights, Shape().spec.text(), "hidden")


def test_prepared_weights_are_prepared_already(efft, device, dtype, generator) -> None:
    shape = SHAPES["bert"]
    once = prepared(efft, on(device, reference.random_weights(shape, generator).to(dtype)), shape)
    twice = prepared(efft, once, shape)
    assert all(a is b or a.data_ptr() == b.data_ptr() for a, b in zip(tensors(once), tensors(twice), strict=True))


def test_prepared_for_another_shape_is_refused(efft, device, generator) -> None:
    weights = prepared(efft, on(device, reference.random_weights(Shape(), generator)), Shape())
    other = Shape(layers=1)
    vectors = on(device, reference.random_weights(other, generator)).vectors
    with pytest.raises(RuntimeError, match="matrices"):
        run(efft, ragged([3], generator).to(device), replace(weights, vectors=vectors), other)
