"""8 bits on the GPU: products, rows and whole encoders beside the same rounding in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builder.encoder import PackedWeights, encode, prepare
from builder.quantisation.quantise import NUMBERS, Step, quantise
from tests.kernels import reference
from tests.kernels.batches import ragged
from tests.kernels.reference import Shape, Weights
from tests.kernels.test_quantised import Arena, emulated

ROOT = Path(__file__).resolve().parents[2]
OPERANDS = {"e4m3": "fp8", "u8": "int8"}
CUTS = {"columns96": 0, "turns128": 1, "turns176": 2, "turns192": 3, "columns256": 4}
ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 4e-3}
SHAPE = Shape(layers=3, hidden=256, heads=4, intermediate=1024)
MANY = [384, 3, 90, 31, 200, 384, 17]
"""Tokens that are multiplied in 8 bits, more than 512."""


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def _values(numbers: Tensor, scales: Tensor, operand: str) -> Tensor:
    """What operands stand for, in float64."""
    plain = numbers.view(torch.float8_e4m3fn) if operand == "e4m3" else numbers
    return plain.double() * scales[:, :1].double() + scales[:, 1:].double()


def _weights(n: int, k: int, operand: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers, scales, scaled sums, and the weights that they stand for."""
    w = torch.randn(n, k, device="cuda") * k**-0.5
    number = NUMBERS[OPERANDS[operand]]
    scales = w.abs().amax(1) / number.largest
    numbers = number.rounded(w / scales[:, None])
    bits = numbers.to(number.dtype).view(torch.uint8)
    return bits, scales, scales * numbers.sum(1), numbers.double() * scales[:, None].double()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize(
    ("rows", "n", "k", "tokens"),
    [(300, 272, 144, 299), (777, 1024, 1024, 700), (9, 64, 16, 9), (900, 272, 272, 130), (4000, 1024, 256, 3970)],
    ids=["odd", "wide", "few", "blocks_without_tiles", "several_tiles_a_block"],
)
def test_products(operand: str, dtype: torch.dtype, cut: str, rows: int, n: int, k: int, tokens: int) -> None:
    """Bias, GELU, residual and rounded results."""
    torch.manual_seed(rows)
    none, ops = torch.empty(0, device="cuda"), torch.ops.efft_test
    numbers, scales = ops.quantise_rows(torch.randn(rows, k, device="cuda", dtype=dtype), none, 0.0, operand)
    w, columns, sums, exact = _weights(n, k, operand)
    bias, residual = torch.randn(n, device="cuda"), torch.randn(rows, n, device="cuda", dtype=dtype)
    count = torch.tensor([tokens], dtype=torch.int32, device="cuda")
    plain = (_values(numbers, scales, operand) @ exact.T)[:tokens]

    def run(bias: Tensor, residual: Tensor, gelu: bool, step: float = 0.0) -> Tensor:
        like = torch.empty(1, dtype=dtype, device="cuda")
        fixed = numbers, scales, w, columns, sums, bias, residual, like, count
        return ops.eight_bit_rows(*fixed, gelu, step, operand, CUTS[cut])[:tokens]

    activated = F.gelu(plain + bias.double())
    assert _error(run(bias, none, False), plain + bias.double()) < ROUNDING[dtype]
    assert _error(run(none, residual, False), plain + residual[:tokens].double()) < ROUNDING[dtype]
    assert _error(run(bias, none, True), activated) < ROUNDING[dtype]
    step = 0.04
    rounded = _values(run(bias, none, True, step), torch.tensor([[step, -128 * step]], device="cuda"), operand)
    if operand == "e4m3":
        rounded = rounded + 128 * step
    assert _error(rounded, activated) < (0.05 if operand == "e4m3" else 0.03)


@pytest.mark.parametrize("operand", OPERANDS)
def test_gelu_of_operands_is_right_far_from_zero(operand: str) -> None:
    """In pairs of fp16, where a polynomial's terms may cancel badly: within what its rounding to steps allows."""
    rows, n, k, step = 128, 1024, 128, 0.07
    none, bias = torch.empty(0, device="cuda"), torch.linspace(-8, 8, n, device="cuda")
    numbers = torch.zeros(rows, k, dtype=torch.uint8, device="cuda")
    scales, weights = torch.ones(rows, 2, device="cuda"), torch.zeros(n, k, dtype=torch.uint8, device="cuda")
    columns, sums = torch.ones(n, device="cuda"), torch.zeros(n, device="cuda")
    like, count = torch.empty(1, dtype=torch.float16, device="cuda"), torch.tensor([rows], dtype=torch.int32).cuda()
    fixed = numbers, scales, weights, columns, sums, bias, none, like, count
    result = torch.ops.efft_test.eight_bit_rows(*fixed, True, step, operand, -1)
    zero = 0 if operand == "e4m3" else 128
    found = _values(result, torch.tensor([[step, -zero * step]], device="cuda"), operand)
    expected = F.gelu(bias.double()).expand(rows, n)
    rounding = expected.abs() / 16 + step / 1024 if operand == "e4m3" else torch.tensor(step / 2)
    assert ((found - expected).abs() <= rounding + 6e-3).all()


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("rows", [67, 5003])
@pytest.mark.parametrize("width", [64, 256, 312, 384, 768, 1016, 1024, 4096, 8192])
def test_rows(operand: str, width: int, rows: int) -> None:
    """A row's own range, and LayerNorm in front, by several warps a row or by one; the error of 8 bits, and no more."""
    torch.manual_seed(width)
    ops = torch.ops.efft_test
    x = torch.randn(rows, width, device="cuda").half()
    gamma, beta, bias, factors = (torch.rand(width, device="cuda") + 0.5 for _ in range(4))
    allowed = 0.03 if operand == "e4m3" else 0.02
    numbers, scales = ops.quantise_rows(x, factors, 0.0, operand)
    assert _error(_values(numbers, scales, operand) / factors.double(), x.double()) < allowed
    normal, numbers, scales = ops.norm_operands(x, bias, gamma, beta, factors, 1e-5, 0.0, operand)
    parameters = (gamma.double(), beta.double(), 1e-5)
    expected = F.layer_norm(x.double() + bias.double(), (width,), *parameters)
    assert _error(normal, expected) < 1e-3
    assert _error(_values(numbers, scales, operand) / factors.double(), expected) < allowed


def _packed(weights: Weights, matrices: Tensor, dtype: torch.dtype) -> PackedWeights:
    served = weights.to(dtype)
    tables = (served.word, served.position, served.segment)
    return PackedWeights(*(t.cuda() for t in (*tables, matrices, served.vectors)))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("scheme", NUMBERS)
@pytest.mark.parametrize(
    "shape",
    [SHAPE, replace(SHAPE, pre_norm=True), replace(SHAPE, activation="relu"), replace(SHAPE, hidden=384, heads=12)],
    ids=["post", "pre", "relu", "heads_of_32"],
)
def test_encoder_errs_as_its_rounding_does(scheme: str, dtype: torch.dtype, shape: Shape, fixed: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    weights = reference.random_weights(shape, generator)
    steps = {}
    if fixed:  # of operands behind attention and activations
        size = 8 / NUMBERS[scheme].largest
        names = [f"{layer}.{name}" for layer in range(shape.layers) for name in ("attention_output", "output")]
        steps = {name: Step(size, 128 if scheme == "int8" else 0) for name in names}
    arena = quantise(weights.matrices, weights.vectors, shape.spec, ("1.qkv", "0.output"), number=scheme, steps=steps)
    batch = ragged(MANY, generator)
    truth = reference.encoder(*batch, weights.to(torch.float64), shape)
    read = Arena(arena)
    rounded = replace(weights, matrices=read.matrices()).to(torch.float64)
    theirs = reference.encoder(*batch, rounded, shape, "hidden", emulated(read)) - truth
    served = prepare(shape.spec, _packed(weights, arena, dtype))
    inputs = tuple(t.cuda() for t in batch)
    first = encode(shape.spec, served, inputs, "hidden")
    for _ in range(3):  # captured, and replayed
        assert torch.equal(encode(shape.spec, served, inputs, "hidden"), first)
    ours = first.cpu().double() - truth
    valid = batch.mask.bool()
    assert not first.cpu()[~valid].any()
    ratio = float(ours[valid].norm() / theirs[valid].norm())
    assert 0.5 < ratio < 1.5, "8 bits err as 8 bits do"


@pytest.mark.parametrize("scheme", NUMBERS)
def test_few_tokens_are_multiplied_in_16_bits(scheme: str) -> None:
    generator = torch.Generator().manual_seed(6)
    weights = reference.random_weights(SHAPE, generator)
    arena = quantise(weights.matrices, weights.vectors, SHAPE.spec, number=scheme)
    batch = ragged([40, 7], generator)
    rounded = replace(weights, matrices=Arena(arena).matrices()).to(torch.float64)
    truth = reference.encoder(*batch, rounded, SHAPE)
    served = prepare(SHAPE.spec, _packed(weights, arena, torch.float16))
    ours = encode(SHAPE.spec, served, tuple(t.cuda() for t in batch), "hidden")
    assert _error(ours.cpu(), truth) < 5e-3


def test_prepared_blocks_stay_and_foreign_bytes_are_refused() -> None:
    generator = torch.Generator().manual_seed(7)
    weights = reference.random_weights(SHAPE, generator)
    arena = quantise(weights.matrices, weights.vectors, SHAPE.spec, number="fp8")
    served = prepare(SHAPE.spec, _packed(weights, arena, torch.bfloat16))
    assert prepare(SHAPE.spec, served).matrices.data_ptr() == served.matrices.data_ptr()
    moved = replace(served, matrices=served.matrices.clone())  # an address that the engine has not met
    inputs = tuple(t.cuda() for t in ragged([9, 30], generator))
    assert torch.equal(encode(SHAPE.spec, moved, inputs, "first"), encode(SHAPE.spec, served, inputs, "first"))
    for bytes_ in (arena[:-64], torch.zeros(4096, dtype=torch.uint8)):
        with pytest.raises(RuntimeError, match="matrices"):
            prepare(SHAPE.spec, _packed(weights, bytes_, torch.bfloat16))
    with pytest.raises(RuntimeError, match="matrices"):
        encode(SHAPE.spec, _packed(weights, arena, torch.bfloat16), inputs, "first")
    with pytest.raises(RuntimeError, match="BFloat16 or Half"):
        prepare(SHAPE.spec, _packed(weights, arena, torch.float32))


def _worker(*arguments: str, **variables: str) -> str:
    command = [sys.executable, "-m", "tests.gpu.eight_bit_worker", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_forced_at_any_size_the_bits_are_those_of_serial_launches() -> None:
    """And no bit depends on whether kernels may start before their predecessor ends."""
    eight = _worker(EFFT_CUDA_PATH="eight")
    assert eight == _worker(EFFT_CUDA_PATH="eight", EFFT_CUDA_SERIAL="1")
    assert eight != _worker(), "the variable is without effect"


@pytest.mark.parametrize(("path", "kernels"), [("eight", "eight_bit_kernel"), ("sm_89", "eight_bit_portable_kernel")])
def test_a_forced_path_has_the_kernels_of_its_chip(path: str, kernels: str) -> None:
    assert _worker("kernels", EFFT_CUDA_PATH=path).splitlines() == [f"int8 {kernels}", f"fp8 {kernels}"]
    if path == "sm_89":  # the chips before have integers alone
        assert _worker("kernels", EFFT_CUDA_PATH="sm_80").splitlines() == [f"int8 {kernels}", "fp8"]


@pytest.mark.parametrize(("path", "operands"), [("sm_80", "int8 or u8"), ("sm_89", "int8 or u8 or fp8 or e4m3")])
def test_the_kernels_of_other_chips_err_as_their_rounding_does(path: str, operands: str) -> None:
    """The tests of encoders and of products above, in a process that takes the device for such a chip."""
    chosen = f"(encoder_errs or (products and columns96)) and ({operands})"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", __file__, "-k", chosen]
    environment = {**os.environ, "EFFT_CUDA_PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    wanted = {"sm_80": 26, "sm_89": 52}[path]
    assert f"{wanted} passed" in done.stdout
