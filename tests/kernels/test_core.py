"""What follows from a spec: its text, its weights, its program and where values lie."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from builder.families import EncoderSpec
from builder.slots import matrices, slots
from tests.kernels import reference
from tests.kernels.batches import joined, ragged
from tests.kernels.families import FAMILIES, SMALL
from tests.kernels.reference import Shape
from tests.kernels.test_encoder import SHAPES, run, tensors


@pytest.fixture
def device(_cpu_library: None) -> str:
    """The core is every device's."""
    return "cpu"


def test_the_text_leaves_out_what_is_default() -> None:
    assert SMALL.text() == "encoder/1 layers=2 hidden=64 heads=2 intermediate=256"
    assert replace(SMALL, embedding=64) == SMALL
    every = replace(SMALL, embedding=32, activation="relu", norm="pre", epsilon=1e-5, positions="ids", pad=0)
    assert every.text() == f"{SMALL.text()} embedding=32 activation=relu norm=pre epsilon=1e-05 positions=ids pad=0"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_attribute_travels(efft_test: SimpleNamespace, name: str) -> None:
    spec = replace(SMALL, **FAMILIES[name])
    assert efft_test.canonical(spec.text()) == spec.text()
    said = {word.partition("=")[0] for word in spec.text().split()[1:]}
    assert said - {"layers", "hidden", "heads", "intermediate"} == set(FAMILIES[name])


def test_what_follows_is_left_out(efft_test: SimpleNamespace) -> None:
    given = {
        "head": 32, "kv_heads": 2, "rotary": "halves", "rotary_size": 32, "local": "00", "layer_of": (0, 1),
        "scale": 1 / math.sqrt(32),
    }  # fmt: skip
    assert replace(SMALL, **given).text() == f"{SMALL.text()} rotary=halves"
    words = " ".join(f"{key}={value}" for key, value in given.items() if key != "layer_of")
    assert efft_test.canonical(f"{SMALL.text()} {words} layer_of=0,1") == f"{SMALL.text()} rotary=halves"
    apart = replace(SMALL, relative="disentangled", distance=8, c2p=True)
    assert replace(apart, scale=1 / math.sqrt(64)) == apart
    assert efft_test.canonical(f"{apart.text()} scale={1 / math.sqrt(64)}") == apart.text()


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (64, 1000), (12, 4096)])
def test_buckets_are_t5s(efft_test: SimpleNamespace, buckets: int, distance: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    spec = replace(SMALL, relative="buckets", buckets=buckets, distance=distance)
    distances = torch.arange(-9000, 9001)
    expected = T5Attention._relative_position_bucket(-distances, True, buckets, distance)
    assert efft_test.buckets(spec.text(), 9000) == expected.tolist()


@pytest.mark.parametrize(("buckets", "distance"), [(256, 512), (16, 32), (6, 100), (0, 512), (128, 5000)])
def test_buckets_are_debertas(efft_test: SimpleNamespace, buckets: int, distance: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    spec = replace(SMALL, relative="disentangled", buckets=buckets, distance=distance, c2p=True)
    distances = torch.arange(-9000, 9001)
    expected = make_log_bucket_position(distances, buckets, distance).long() if buckets else distances
    assert efft_test.buckets(spec.text(), 9000) == expected.tolist()


def test_slots_come_and_go_with_what_uses_them(efft: SimpleNamespace) -> None:
    def names(family: str) -> list[str]:
        return [slot.name for slot in slots(replace(SMALL, **FAMILIES[family]))]

    assert names("modernbert")[:6] == [
        "word",
        "embedding_norm.gamma",
        "embedding_norm.beta",
        "rotary",
        "rotary_local",
        "0.qkv",
    ]
    assert not [name for name in names("modernbert") if name.startswith("0.attention_norm")]
    assert [name for name in names("deberta") if "position" in name] == [
        f"{layer}.position_{kind}" for layer in range(2) for kind in ("keys", "queries")
    ]
    assert not [name for name in names("albert") if name.startswith("1.")]
    assert names("eurobert")[:3] == ["word", "rotary", "0.qkv"]
    assert [name for name in names("t5") if "." not in name] == ["word", "relative"]
    sizes = {slot.name: (slot.rows, slot.columns) for slot in slots(replace(SMALL, **FAMILIES["eurobert"]))}
    assert (sizes["0.qkv"], sizes["0.intermediate"], sizes["0.output"]) == ((128, 64), (512, 64), (64, 256))
    sizes = {slot.name: (slot.rows, slot.columns) for slot in slots(replace(SMALL, **FAMILIES["t5"]))}
    assert (sizes["0.qkv"], sizes["0.attention_output"], sizes["relative"]) == ((120, 64), (64, 40), (16, 1))
    sizes = {slot.name: slot.rows for slot in slots(replace(SMALL, **FAMILIES["deberta"]))}
    assert sizes["1.position_keys"] == 2 * 16 * 64


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1e-7, 0.0001, 0.1, 0.0, 1 / 3, 1.0000000000000002e-12, 5e-324])
def test_python_and_the_library_print_alike(efft_test: SimpleNamespace, epsilon: float) -> None:
    for spec in (replace(SMALL, epsilon=epsilon), replace(SMALL, positions="ids", pad=3, norm="pre", embedding=20)):
        assert efft_test.canonical(spec.text()) == spec.text()


def test_order_and_defaults_do_not_matter(efft_test: SimpleNamespace) -> None:
    text = "encoder/1  norm=post heads=2 intermediate=256 hidden=64 layers=2 embedding=64 offset=0 epsilon=1e-12"
    assert efft_test.canonical(text) == SMALL.text()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_slots_are_in_the_arenas_order(efft: SimpleNamespace, shape: Shape) -> None:
    found = slots(shape.spec)
    assert [slot.name for slot in found[:3]] == ["word", "position", "segment"]
    assert [(slot.rows, slot.columns) for slot in matrices(shape.spec)] == shape.matrix_sizes()
    vectors = [slot for slot in found if slot.kind == "vector"]
    assert [(slot.name.rpartition(".")[2], slot.rows) for slot in vectors] == shape.vector_sizes()
    for arena in (matrices(shape.spec), vectors):
        assert [slot.offset for slot in arena] == [sum(s.elements for s in arena[:i]) for i in range(len(arena))]


def test_what_feeds_a_matrix(efft: SimpleNamespace) -> None:
    post = {slot.name: slot.fed_by for slot in matrices(replace(SMALL, embedding=32))}
    assert post["projection"] == "embedding_norm"
    assert post["0.qkv"] == "projection"
    assert post["0.intermediate"] == "0.attention_norm"
    assert post["1.qkv"] == "0.output_norm"
    pre = {slot.name: slot.fed_by for slot in matrices(replace(SMALL, norm="pre"))}
    assert (pre["1.qkv"], pre["1.intermediate"]) == ("1.attention_norm", "1.output_norm")


ONE = "encoder/1 layers=1 hidden=64 heads=2 intermediate=256"
PROGRAMS = {
    (ONE, "none"): """
embed embedding_norm -> v0
linear 0.qkv v0 -> v1
attend v1 -> v2
linear 0.attention_output v2 + v0 -> v3
norm 0.attention_norm v3 -> v4
linear 0.intermediate v4 activation -> v5
linear 0.output v5 + v4 -> v6
norm 0.output_norm v6 -> v7
pool v7
""",
    (ONE + " norm=pre", "none"): """
embed embedding_norm -> v0
norm 0.attention_norm v0 -> v1
linear 0.qkv v1 -> v2
attend v2 -> v3
linear 0.attention_output v3 + v0 -> v4
norm 0.output_norm v4 -> v5
linear 0.intermediate v5 activation -> v6
linear 0.output v6 + v4 -> v7
norm final_norm v7 -> v8
pool v8
""",
    (ONE, "folded"): """
embed embedding_norm -> v0
linear 0.qkv v0 -> v1
attend v1 -> v2
linear 0.attention_output v2 + v0 -> v3
linear 0.intermediate v3:0.attention_norm activation -> v4
linear 0.output v4 + v3:0.attention_norm -> v5
norm 0.output_norm v5 -> v6
pool v6
""",
    (
        "encoder/1 layers=2 hidden=64 heads=2 intermediate=256 norm=pre positions=none first_norm=0 types=0 gated=1 "
        "rotary=halves window=5 local=01",
        "none",
    ): """
embed embedding_norm -> v0
linear 0.qkv v0 -> v1
attend v1 rotary -> v2
linear 0.attention_output v2 + v0 -> v3
norm 0.output_norm v3 -> v4
linear 0.intermediate v4 gated activation -> v5
linear 0.output v5 + v3 -> v6
norm 1.attention_norm v6 -> v7
linear 1.qkv v7 -> v8
attend v8 local rotary_local -> v9
linear 1.attention_output v9 + v6 -> v10
norm 1.output_norm v10 -> v11
linear 1.intermediate v11 gated activation -> v12
linear 1.output v12 + v10 -> v13
norm final_norm v13 -> v14
pool v14
""",
    (
        "encoder/1 layers=2 hidden=64 heads=2 intermediate=256 positions=none embedding_norm=0 "
        "relative=disentangled distance=8 c2p=1 p2c=1 layer_of=0,0",
        "none",
    ): """
embed -> v0
linear 0.qkv v0 -> v1
attend v1 0.position_keys 0.position_queries -> v2
linear 0.attention_output v2 + v0 -> v3
norm 0.attention_norm v3 -> v4
linear 0.intermediate v4 activation -> v5
linear 0.output v5 + v4 -> v6
norm 0.output_norm v6 -> v7
linear 0.qkv v7 -> v8
attend v8 0.position_keys 0.position_queries -> v9
linear 0.attention_output v9 + v7 -> v10
norm 0.attention_norm v10 -> v11
linear 0.intermediate v11 activation -> v12
linear 0.output v12 + v11 -> v13
norm 0.output_norm v13 -> v14
pool v14
""",
    (ONE + " norm=pre", "first_rows"): """
embed embedding_norm -> v0
norm 0.attention_norm v0 -> v1
gather v1 -> v2
gather v0 -> v3
linear 0.qkv v1 queries v2 -> v4
attend v4 -> v5
linear 0.attention_output v5 + v3 -> v6
norm 0.output_norm v6 -> v7
linear 0.intermediate v7 activation -> v8
linear 0.output v8 + v6 -> v9
norm final_norm v9 -> v10
pool v10
""",
}


@pytest.mark.parametrize(("spec", "rewrite"), PROGRAMS)
def test_programs(efft_test: SimpleNamespace, spec: str, rewrite: str) -> None:
    assert efft_test.program(spec, rewrite) == PROGRAMS[spec, rewrite].lstrip()


def _lives(program: str) -> list[tuple[int, int]]:
    """When each value is written and last read, by the program's text."""
    made, read = {}, {}
    for index, line in enumerate(program.splitlines()):
        before, _, after = line.partition(" -> ")
        for word in before.replace(":", " ").split():
            if word[0] == "v" and word[1:].isdigit():
                read[word] = index
        if after:
            made[after] = index
    return [(made[f"v{i}"], read[f"v{i}"]) for i in range(len(made))]


@pytest.mark.parametrize("rewrite", ["none", "first_rows", "folded"])
@pytest.mark.parametrize("options", [{}, {"norm": "pre"}, {"embedding": 32}, {"norm": "pre", "embedding": 32}], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_values_that_live_together_lie_apart(efft_test, options: dict, rewrite: str, shared: bool) -> None:
    spec = replace(SMALL, layers=3, **options)
    *places, total = efft_test.places(spec.text(), rewrite, shared)
    lives = _lives(efft_test.program(spec.text(), rewrite))
    widths = _widths(spec, efft_test.program(spec.text(), rewrite))
    for i, (made, read) in enumerate(lives):
        assert 0 <= places[i] <= total - widths[i]
        for j, (other_made, other_read) in enumerate(lives[:i]):
            # A result may take over what its step reads last, where sharing is allowed.
            together = made < other_read if shared else made <= other_read
            if together and other_made <= read:
                assert places[i] + widths[i] <= places[j] or places[j] + widths[j] <= places[i], (i, j)
    # What one layer needs at a time, however many there are: the stream and its gathered rows or its norm, q, k, v, and
    # the feed-forward network's inner width.
    assert total <= 64 * (2 + 3 + 4)


def _widths(spec: EncoderSpec, program: str) -> list[int]:
    sizes = {slot.name: slot.rows for slot in matrices(spec)}
    widths: list[int] = []
    for line in program.splitlines():
        words = line.split()
        if "->" not in words:
            continue
        same = {"norm": 2, "gather": 1}.get(words[0])
        if words[0] == "linear":
            widths.append(sizes[words[1]])
        elif same is not None:
            widths.append(widths[int(words[same][1:])])
        else:
            widths.append(spec.width if words[0] == "embed" else spec.hidden)
    return widths


def test_many_specs_in_turn(efft: SimpleNamespace, generator: torch.Generator) -> None:
    """More than are kept: the first one is lowered anew and answers as before."""
    shape = Shape(layers=1)
    weights = reference.random_weights(shape, generator)
    batch = ragged([5, 3], generator)
    before = run(efft, batch, weights, shape)
    for layers in range(1, 100):
        efft.slots(replace(SMALL, layers=layers).text())
    assert torch.equal(run(efft, batch, weights, shape), before)


@pytest.mark.parametrize("form", [lambda padded: padded, joined], ids=["padded", "packed"])
@pytest.mark.parametrize("output", ["hidden", "first", "mean"])
def test_fakes_have_the_operators_types_and_shapes(efft: SimpleNamespace, generator, dtype, output, form) -> None:
    shape = SHAPES["projection"]
    weights = reference.random_weights(shape, generator).to(dtype)
    batch = form(ragged([5, 3], generator))
    real = efft.prepare_weights(tensors(weights), shape.spec.text())
    answer = efft.encode(*batch, real, shape.spec.text(), output)
    old = efft.prepare(weights.matrices, shape.layers, shape.hidden, shape.width, shape.intermediate, weights.vectors)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in tensors(weights)]
        inputs = [mode.from_tensor(tensor) for tensor in batch]
        prepared = efft.prepare_weights(fakes, shape.spec.text())
        faked = efft.encode(*inputs, prepared, shape.spec.text(), output)
        old_fake = efft.prepare(fakes[3], shape.layers, shape.hidden, shape.width, shape.intermediate, fakes[4])
    for fake, tensor in zip([*prepared, faked, old_fake], [*real, answer, old], strict=True):
        assert (fake.dtype, fake.dim()) == (tensor.dtype, tensor.dim())
    assert faked.shape == answer.shape
