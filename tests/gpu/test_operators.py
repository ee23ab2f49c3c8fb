"""The encoder's steps as operators, on the GPU, against plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.gpu.encoders import DTYPES
from tests.kernels.criterion import assert_close

WIDTHS = [768, 1024, 384, 312, 30, 7, 1500, 2048, 4096]


def _random(*size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator).to("cuda", dtype)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 384), (33, 70), (3, 4096), (70, 31)])
def test_unpad(batch: int, length: int) -> None:
    mask = (torch.rand(batch, length, generator=torch.Generator().manual_seed(batch)) < 0.6).long().cuda() * 7
    cu_seqlens, rows = torch.ops.efft_test.unpad(mask)
    expected = mask.flatten().nonzero().flatten().int()
    assert torch.equal(cu_seqlens, F.pad(mask.bool().sum(1).cumsum(0), (1, 0)).int())
    assert torch.equal(rows[: len(expected)], expected)
    assert (rows[len(expected) :] == -1).all()


# From 1,024 rows of 513 to 1,024 columns on, rows are taken two at a time.
@pytest.mark.parametrize(("rows", "width"), [*((37, width) for width in WIDTHS), (1025, 768), (6035, 768)])
@pytest.mark.parametrize("data_type", DTYPES)
def test_add_norm(data_type: str, rows: int, width: int) -> None:
    dtype = DTYPES[data_type]
    x, residual = _random(rows, width, dtype=dtype), _random(rows, width, dtype=dtype, seed=1)
    bias, gamma, beta = (_random(width, dtype=torch.float32, seed=s) for s in (2, 3, 4))

    def plain(to: torch.dtype) -> Tensor:
        inputs = [t.to(to) for t in (x, bias, residual, gamma, beta)]
        return F.layer_norm(inputs[0] + inputs[1] + inputs[2], (width,), inputs[3], inputs[4], 1e-5)

    torch.cuda.synchronize()  # the vectors are older than what runs before
    for overlap in (False, True):
        got = torch.ops.efft_test.add_norm(x, bias, residual, gamma, beta, 1e-5, overlap)
        assert_close(got, plain(dtype), plain(torch.float64).cpu())


def heads_of(width: int) -> int:
    """Any number that the spec lets pass."""
    return next(heads for heads in range(1, width) if width % heads == 0 and width // heads in range(2, 129, 2))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("width", [3072, 1200, 50, 7])
@pytest.mark.parametrize("data_type", DTYPES)
def test_bias_activation(data_type: str, width: int, activation: str) -> None:
    dtype = DTYPES[data_type]
    x, bias = _random(19, width, dtype=dtype) * 3, _random(width, dtype=torch.float32, seed=1)

    def plain(to: torch.dtype) -> Tensor:
        y = x.to(to) + bias.to(to)
        kind = "tanh" if activation == "gelu_tanh" else "none"
        return F.relu(y) if activation == "relu" else F.gelu(y, approximate=kind)

    assert_close(torch.ops.efft_test.bias_activation(x, bias, activation), plain(dtype), plain(torch.float64).cpu())


PADS = {"ids": 1, "ids_0": 0, "ids_last": 89, "ids_none": -1}


@pytest.mark.parametrize("positions", ["slot", "mask", *PADS])
@pytest.mark.parametrize("width", [768, 312, 30])
@pytest.mark.parametrize("data_type", DTYPES)
def test_embed_norm(data_type: str, width: int, positions: str) -> None:
    dtype = DTYPES[data_type]
    word, position, segment = (_random(rows, width, dtype=dtype, seed=rows) for rows in (90, 160, 2))
    gamma, beta = (_random(width, dtype=torch.float32, seed=s) for s in (2, 3))
    mask = (torch.rand(5, 60, generator=torch.Generator().manual_seed(0)) < 0.7).long().cuda()
    ids, segments = torch.randint(90, (5, 60)).cuda(), torch.randint(2, (5, 60)).cuda()
    columns = torch.arange(60, device="cuda").expand(5, 60)
    if positions in PADS:
        pad = PADS[positions]
        others = (ids != pad).long()
        places, rule = others.cumsum(1) * others + pad, f"positions=ids pad={pad}"
    else:
        places, rule = (mask.cumsum(1) - 1 if positions == "mask" else columns) + 2, f"positions={positions} offset=2"
    valid = mask.bool()

    def plain(to: torch.dtype) -> Tensor:
        tables = [(word, ids), (position, places), (segment, segments)]
        parts = [F.embedding(index[valid], table.to(to)) for table, index in tables]
        total = parts[0] + parts[1] + parts[2]
        return F.layer_norm(total, (width,), gamma.to(to), beta.to(to), 1e-12)

    spec = f"encoder/1 layers=1 hidden={width} heads={heads_of(width)} intermediate=8 {rule}"
    got = torch.ops.efft_test.embed_norm(ids, segments, mask, word, position, segment, gamma, beta, spec)
    assert_close(got, plain(dtype), plain(torch.float64).cpu())


@pytest.mark.parametrize("head_size", [64, 32, 128, 80, 26, 10, 2])
@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize("skipped", [0, 1], ids=["aligned", "on_four_bytes"])
@pytest.mark.parametrize("lengths", [[1, 0, 130, 33, 64, 700, 5], [*range(1, 385, 6)]], ids=["few", "many"])
def test_attention(data_type: str, head_size: int, skipped: int, lengths: list[int]) -> None:
    dtype, heads = DTYPES[data_type], 3
    tokens, hidden = sum(lengths), heads * head_size
    qkv = _random(tokens, 3 * hidden, dtype=dtype)
    bias = _random(3 * hidden + 1, dtype=torch.float32, seed=1)[skipped : skipped + 3 * hidden]
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().cuda()

    def plain(to: torch.dtype) -> Tensor:
        outputs = []
        for part in (qkv.to(to) + bias.to(to)).split(lengths):
            q, k, v = (t.view(-1, heads, head_size).transpose(0, 1) for t in part.split(hidden, 1))
            weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(head_size), -1)
            outputs.append((weights @ v).transpose(0, 1).reshape(-1, hidden))
        return torch.cat(outputs)

    got = torch.ops.efft_test.attention(qkv, bias, cu_seqlens, heads, max(lengths))
    assert_close(got, plain(dtype), plain(torch.float64).cpu())


@pytest.mark.parametrize("lengths", [[1, 0, 130, 33, 64, 700, 5], [31] * 600, [384] * 40, [384], [1500, 64]])
@pytest.mark.parametrize("head_size", [64, 32, 128, 26])
@pytest.mark.parametrize("data_type", DTYPES)
def test_scores_are_a_policy(data_type: str, head_size: int, lengths: list[int]) -> None:
    """A window and a bias that no kernel knows of, on each kernel: tiles shared and not, resident, in a ring."""
    dtype, heads, reach, slope = DTYPES[data_type], 2, 70, 0.03
    hidden = heads * head_size
    qkv = _random(sum(lengths), 3 * hidden, dtype=dtype)
    bias = _random(3 * hidden, dtype=torch.float32, seed=1)
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().cuda()

    def plain(to: torch.dtype) -> Tensor:
        outputs = []
        for part in (qkv.to(to) + bias.to(to)).split(lengths):
            q, k, v = (t.view(-1, heads, head_size).transpose(0, 1) for t in part.split(hidden, 1))
            places = torch.arange(len(part), device="cuda")
            distance = (places[:, None] - places).abs()
            penalty = slope * torch.arange(1, heads + 1, device="cuda")[:, None, None] * distance
            scores = q @ k.transpose(1, 2) / math.sqrt(head_size) - penalty.to(to)
            weights = torch.softmax(scores.masked_fill(distance > reach, -math.inf), -1)
            outputs.append((weights @ v).transpose(0, 1).reshape(-1, hidden))
        return torch.cat(outputs)

    got = torch.ops.efft_test.packed_window_attention(qkv, bias, cu_seqlens, heads, max(lengths), reach, slope)
    assert_close(got, plain(dtype), plain(torch.float64).cpu())


@pytest.mark.parametrize(
    ("ends", "longest", "message"),
    [([0, 4, 3], 4, "sequence 1 has -1"), ([0, 9], 4, "sequence 0 has 9"), ([0, 2], 4, "ends at 2"), ([1, 4], 4, "0")],
)
def test_lengths_that_lie_are_refused(ends: list[int], longest: int, message: str) -> None:
    qkv, bias = torch.zeros(4, 3 * 64, device="cuda"), torch.zeros(3 * 64, device="cuda")
    with pytest.raises(RuntimeError, match=f"cu_seqlens: .*{message}"):
        torch.ops.efft_test.attention(qkv, bias, torch.tensor(ends, dtype=torch.int32).cuda(), 1, longest)
