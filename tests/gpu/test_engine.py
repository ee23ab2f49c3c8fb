"""What the engine remembers between calls must never show: graphs, streams, threads, captures."""

from __future__ import annotations

import ctypes
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from handler.packing import out_of_memory
from tests.gpu.encoders import Pair, batch, encode, make_pair

SIZES: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}


def _pair(data_type: str = "fp16", **sizes: Any) -> Pair:
    return make_pair("bert", data_type, **{**SIZES, **sizes})


def test_repeated_runs_are_bit_identical() -> None:
    pair = _pair()
    for lengths in ([32], [100, 3, 77], [128] * 16):
        ids, mask = batch(pair, lengths)
        first = encode(pair, ids, mask)
        for _ in range(5):  # the first launches kernels one by one, the second captures, the rest replay
            assert torch.equal(encode(pair, ids, mask), first)


def test_one_graph_serves_its_bucket() -> None:
    pair = _pair()
    draw = random.Random(0)
    expected, inputs = [], []
    for seed in range(12):
        lengths = [draw.randint(1, 60) for _ in range(draw.choice([7, 8]))]
        inputs.append(batch(pair, lengths, columns=60 + seed % 5, seed=seed))
    for ids, mask in inputs:
        alone = [encode(pair, ids[i : i + 1], mask[i : i + 1]) for i in range(len(ids))]
        expected.append(torch.cat(alone))
    for _ in range(3):
        for (ids, mask), reference in zip(inputs, expected, strict=True):
            got = encode(pair, ids, mask)
            assert (got - reference).abs().max() <= 0.02 * reference.abs().max()


def test_batches_that_are_counted_may_grow_and_be_empty() -> None:
    pair = _pair()
    for lengths in ([128, 5, 127, 90], [128] * 16, [0] * 8, [128, 2] * 20, [128, 5, 127, 90]):
        ids, mask = batch(pair, lengths, columns=128)
        alone = [encode(pair, ids[i : i + 1], mask[i : i + 1]) for i in range(len(ids))]
        for _ in range(3):
            got = encode(pair, ids, mask)
            assert torch.allclose(got, torch.cat(alone), rtol=0.02, atol=0.02)
            assert not got[mask == 0].any()


def test_new_weights_are_not_answered_with_old_ones() -> None:
    pair = _pair(prepared=False)
    ids, mask = batch(pair, [40, 12])
    before = [encode(pair, ids, mask) for _ in range(3)][-1]
    pair.packed.matrices.mul_(1.01)
    after = encode(pair, ids, mask)
    assert not torch.equal(before, after)
    other = make_pair("bert", "fp16", **SIZES, num_hidden_layers=3)
    assert not torch.equal(encode(other, ids, mask), after)


def test_streams_do_not_share_memory() -> None:
    pair = _pair()
    inputs = [batch(pair, [60, 2, 33 + i], seed=i) for i in range(4)]
    expected = [encode(pair, *one) for one in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    results: list[list[torch.Tensor]] = [[] for _ in inputs]
    for _ in range(20):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(encode(pair, *inputs[i]))
    torch.cuda.synchronize()
    for got, reference in zip(results, expected, strict=True):
        assert all(torch.equal(one, reference) for one in got)


def test_threads_on_one_stream() -> None:
    pair = _pair()
    inputs = [batch(pair, [50, 9 + i, 1], seed=i) for i in range(4)]
    expected = [encode(pair, *one) for one in inputs]
    torch.cuda.synchronize()

    def work(index: int) -> bool:
        return all(torch.equal(encode(pair, *inputs[index]), expected[index]) for _ in range(30))

    with ThreadPoolExecutor(len(inputs)) as pool:
        assert all(pool.map(work, range(len(inputs))))


def test_inside_a_graph_of_the_caller() -> None:
    pair = _pair()
    ids, mask = batch(pair, [60, 33, 2])
    other_ids, other_mask = batch(pair, [11, 60, 48], seed=1)
    expected, other = encode(pair, ids, mask), encode(pair, other_ids, other_mask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = encode(pair, ids, mask)
    graph.replay()
    encode(pair, other_ids, other_mask)  # the engine's own workspace must not be the graph's
    torch.cuda.synchronize()
    assert torch.allclose(out, expected, rtol=0.02, atol=0.02)
    ids.copy_(other_ids)
    mask.copy_(other_mask)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.allclose(out, other, rtol=0.02, atol=0.02)


def _facts() -> dict[str, int]:
    """What the engine holds: streams with a workspace, and graphs."""
    facts = dict(item.split("=", 1) for item in torch.ops.efft.describe_cuda().split())
    return {name: int(facts[name]) for name in ("graphs", "streams")}


def _new_stream() -> torch.cuda.Stream:
    """Not one of torch's pool, which other tests have used."""
    handle = ctypes.c_void_p()
    torch.cuda.check_error(torch.cuda.cudart().cudaStreamCreate(ctypes.addressof(handle)))
    return torch.cuda.ExternalStream(handle.value)


def test_graphs_are_bounded() -> None:
    pair = _pair()
    first = batch(pair, [9])
    expected = encode(pair, *first)
    torch.cuda.synchronize()
    with torch.cuda.stream(_new_stream()):
        encode(pair, *batch(pair, [128] * 32))  # all the memory that follows needs, so that no graph is lost to a move
        before = _facts()["graphs"]
        for length in (20, 40, 60, 90, 120):  # more than 160 buckets
            for size in (1, 2, 3, 4, 5, 7, 10, 14, 20, 28):
                for share in (1, 2, 3, 4, 5, 6, 8):
                    inputs = batch(pair, [-(-length // share)] * size, columns=length)
                    for _ in range(2):
                        encode(pair, *inputs)
        assert torch.equal(encode(pair, *first), expected)
        assert 100 < _facts()["graphs"] - before <= 128


def test_streams_are_bounded() -> None:
    pair = _pair()
    inputs = batch(pair, [17, 4])
    expected = encode(pair, *inputs)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(priority=-(i % 2)) for i in range(60)]  # torch has 32 of each priority
    assert len({stream.cuda_stream for stream in streams}) > 40
    for stream in streams:
        with torch.cuda.stream(stream):
            assert torch.equal(encode(pair, *inputs), expected)
    assert _facts()["streams"] == 32


def test_graphs_and_workspaces_go_with_their_weights() -> None:
    pair = _pair()
    inputs = batch(pair, [30, 7])
    expected = encode(pair, *inputs)
    torch.cuda.synchronize()
    # Weights of earlier tests have ended without a word and may have stood at this address.
    torch.ops.efft.forget_weights(pair.packed.matrices.data_ptr())
    with torch.cuda.stream(_new_stream()):
        before = _facts()["graphs"]
        for _ in range(2):
            encode(pair, *inputs)
        assert _facts()["graphs"] == before + 1
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        assert torch.ops.efft.forget_weights(pair.packed.matrices.data_ptr()) >= 1
        assert _facts()["graphs"] == before
        assert torch.cuda.memory_allocated() < held
        assert torch.equal(encode(pair, *inputs), expected)


def test_asking_what_is_held_waits_for_nobody() -> None:
    """A thread keeps its stream's lock while it waits for the device to count tokens."""
    pair = _pair()
    inputs = batch(pair, [128, 5, 127, 90] * 2)  # more than the small path takes uncounted
    encode(pair, *inputs)
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as pool:
        torch.cuda._sleep(2_000_000_000)  # cycles: a second
        call = pool.submit(lambda: encode(pair, *inputs))
        time.sleep(0.2)
        start = time.monotonic()
        _facts()
        took = time.monotonic() - start
        waiting = not call.done()
        call.result()
    assert waiting, "the call did not wait: nothing was tried"
    assert took < 0.1


@pytest.mark.alone
def test_a_device_without_memory_answers_all_the_same() -> None:
    """A real shortage: a ballast leaves little of the device. What fits is right, what does not says so."""
    pair = _pair(max_position_embeddings=512)
    sizes = [[30, 7], [512] * 2, [512] * 64, [100, 3, 77], [512] * 256, [30, 7], [512] * 16]
    inputs = [batch(pair, lengths) for lengths in sizes]
    expected = [encode(pair, *one).cpu() for one in inputs]
    torch.ops.efft.forget_weights(pair.packed.matrices.data_ptr())
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    ballast = [_ballast(free - (192 << 20))]
    try:
        answered = 0
        for _ in range(3):
            for one, right in zip(inputs, expected, strict=True):
                try:
                    got = encode(pair, *one).cpu()
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    torch.cuda.empty_cache()
                    continue
                assert torch.equal(got, right)
                answered += 1
        assert 0 < answered < 3 * len(inputs), "the ballast was too small or too large to try anything"
    finally:
        for pointer in ballast:
            _cudart().cudaFree(ctypes.c_void_p(pointer))
    for one, right in zip(inputs, expected, strict=True):
        assert torch.equal(encode(pair, *one).cpu(), right)


def _cudart() -> ctypes.CDLL:
    return ctypes.CDLL(next(line.split()[-1] for line in open("/proc/self/maps") if "libcudart" in line))


def _ballast(size: int) -> int:
    """Device memory taken from outside torch, as another process would."""
    pointer = ctypes.c_void_p()
    assert _cudart().cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)) == 0
    assert pointer.value is not None
    return pointer.value


def test_without_memory_a_call_says_so_and_the_next_one_works() -> None:
    pair = _pair(max_position_embeddings=512)
    small, large = batch(pair, [30, 7]), batch(pair, [512] * 64)
    expected = encode(pair, *small)
    torch.cuda.synchronize()
    total = torch.cuda.mem_get_info()[1]
    with torch.cuda.stream(torch.cuda.Stream()):
        encode(pair, *small)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**24) / total)
        try:
            with pytest.raises(RuntimeError) as raised:
                encode(pair, *large)
            assert out_of_memory(raised.value)
            assert torch.equal(encode(pair, *small), expected)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert torch.isfinite(encode(pair, *large)).all()
        torch.cuda.synchronize()
