"""What the engine remembers between calls must never show: graphs, streams, threads, captures."""

from __future__ import annotations

import random
import threading
from typing import Any

import torch

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
    failures: list[int] = []

    def work(index: int) -> None:
        for _ in range(30):
            if not torch.equal(encode(pair, *inputs[index]), expected[index]):
                failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


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


def test_memory_is_bounded() -> None:
    pair = _pair()
    for length in range(1, 200, 3):
        ids, mask = batch(pair, [min(length, 128)] * (1 + length % 5))
        for _ in range(2):
            encode(pair, ids, mask)
    facts = dict(item.split("=", 1) for item in torch.ops.efft.describe_cuda().split())
    assert int(facts["graphs"]) <= 128 * int(facts["streams"])
    assert int(facts["streams"]) <= 32
