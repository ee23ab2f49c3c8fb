"""The encoder's parts as operators of their own, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels import reference
from tests.kernels.batches import ragged
from tests.kernels.criterion import assert_close
from tests.kernels.reference import Shape

WIDTHS = [2, 31, 64, 312, 768]


def cu_seqlens(lengths: list[int]) -> torch.Tensor:
    """int32 [B + 1]."""
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def test_unpad(efft_test, device) -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
    ends, rows = efft_test.unpad(mask.to(device))
    assert ends.dtype == rows.dtype == torch.int32
    assert ends.tolist() == [0, 2, 2, 5]
    assert rows.tolist() == [0, 1, 8, 10, 11] + [-1] * 7


@pytest.mark.parametrize(
    "positions", [{"offset": 3}, {"positions": "mask", "offset": 3}, {"positions": "ids", "pad": 7}]
)
@pytest.mark.parametrize("width", WIDTHS)
def test_embed_norm(efft_test, device, dtype, generator, width, positions) -> None:
    shape = Shape(hidden=2, heads=1, embedding=width, epsilon=1e-5, **positions)
    weights = reference.random_weights(shape, generator).to(dtype)
    gamma, beta = torch.randn(2, width, generator=generator)
    batch = ragged([6, 0, 11, 1], generator)
    valid = batch.mask != 0
    truth = reference.embed_norm(*batch, weights.to(torch.float64), gamma, beta, shape)[valid]
    plain = reference.embed_norm(*batch, weights, gamma, beta, shape)[valid]
    tensors = [t.to(device) for t in (*batch, weights.word, weights.position, weights.segment, gamma, beta)]
    assert_close(efft_test.embed_norm(*tensors, shape.spec.text()).cpu(), plain, truth)


@pytest.mark.parametrize("lengths", [[1], [2, 17, 1, 64], [200], [0, 9, 0]], ids=str)
@pytest.mark.parametrize(("heads", "size"), [(1, 2), (3, 32), (12, 26), (2, 64), (3, 80), (5, 128)])
def test_attention(efft_test, device, dtype, generator, heads, size, lengths) -> None:
    batch = ragged(lengths, generator)
    width = 3 * heads * size
    qkv = torch.randn(*batch.ids.shape, width, generator=generator).to(dtype)
    bias = torch.randn(width, generator=generator) * 0.3
    valid = batch.mask != 0
    truth = reference.attention(qkv.double(), bias, batch.mask, heads)[valid]
    plain = reference.attention(qkv, bias, batch.mask, heads)[valid]
    ends = cu_seqlens(lengths).to(device)
    actual = efft_test.attention(qkv[valid].to(device), bias.to(device), ends, heads, max(lengths))
    assert_close(actual.cpu(), plain, truth)


def test_attention_with_large_scores(efft_test, device, dtype, generator) -> None:
    qkv = (torch.randn(1, 40, 3 * 64, generator=generator) * 12).to(dtype)
    bias, mask = torch.zeros(3 * 64), torch.ones(1, 40)
    truth = reference.attention(qkv.double(), bias, mask, 1)[0]
    plain = reference.attention(qkv, bias, mask, 1)[0]
    actual = efft_test.attention(qkv[0].to(device), bias.to(device), cu_seqlens([40]).to(device), 1, 40)
    assert_close(actual.cpu(), plain, truth)


@pytest.mark.parametrize("length", [1, 7, 40, 130, 200])
@pytest.mark.parametrize("size", [2, 32, 80])
def test_a_window_and_a_bias_are_a_policy(efft_test, device, generator, size, length) -> None:
    if device == "cuda":
        pytest.skip("the CPU's policy; tests/gpu has the GPU's")
    q, k, v = torch.randn(3, length, size, generator=generator)
    distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = (q @ k.T) * size**-0.5 - 0.05 * distance
        return scores.masked_fill(distance > 20, -1e30).softmax(-1) @ v

    actual = efft_test.cpu_window_attention(q, k, v, length // 3)
    assert_close(actual, plain(q, k, v), plain(q.double(), k.double(), v.double()))


@pytest.mark.parametrize("width", WIDTHS)
def test_add_norm(efft_test, device, dtype, generator, width) -> None:
    x, residual = torch.randn(2, 9, width, generator=generator).to(dtype)
    bias, gamma, beta = torch.randn(3, width, generator=generator)

    def plain(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        total = x + bias.to(x.dtype) + residual
        return F.layer_norm(total, (width,), gamma.to(x.dtype), beta.to(x.dtype), 1e-5)

    tensors = [t.to(device) for t in (x, bias, residual, gamma, beta)]
    actual = efft_test.add_norm(*tensors, 1e-5)
    assert_close(actual.cpu(), plain(x, residual), plain(x.double(), residual.double()))


@pytest.mark.parametrize("activation", reference.STEPS)
@pytest.mark.parametrize("width", WIDTHS)
def test_bias_activation(efft_test, device, dtype, generator, width, activation) -> None:
    x = (torch.randn(7, width, generator=generator) * 4).to(dtype)
    bias = torch.randn(width, generator=generator)
    step = reference.STEPS[activation]
    truth = step(x.double() + bias.double())
    actual = efft_test.bias_activation(x.to(device), bias.to(device), activation)
    assert_close(actual.cpu(), step(x + bias.to(dtype)), truth)


def test_activations_far_out(efft_test, device) -> None:
    x = torch.tensor([[-1e4, -60.0, -9.0, 9.0, 60.0, 1e4]])
    for activation in ("gelu", "gelu_tanh", "relu"):
        actual = efft_test.bias_activation(x.to(device), torch.zeros(6).to(device), activation).cpu()
        torch.testing.assert_close(actual, x.clamp(min=0), atol=1e-6, rtol=1e-6)


def test_bad_sequences_are_named(efft_test, device) -> None:
    if device == "cuda":
        pytest.skip("a CUDA call does not wait for the values of its lengths")
    qkv, bias = torch.zeros(5, 12), torch.zeros(12)
    for ends in ([0, 4], [0, 6], [1, 5], [0, 5, 3], [0, 3, 2, 5]):
        with pytest.raises(RuntimeError, match="cu_seqlens"):
            efft_test.attention(qkv, bias, torch.tensor(ends, dtype=torch.int32), 2, 5)


def test_describe(efft) -> None:
    pairs = dict(pair.split("=") for pair in efft.describe().split())
    assert pairs["device"] in ("cpu", "cuda")
    assert pairs["isa"]
