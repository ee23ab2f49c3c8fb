"""Whole encoders against transformers: families, types, shapes, lengths and kinds of result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builder.encoder import prepare
from tests.checkpoints import FAMILIES
from tests.gpu.encoders import DTYPES, batch, check, encode, make_pair, with_output
from tests.kernels.criterion import assert_close

LENGTHS = [[1], [32], [5, 1, 17, 33], [128, 3, 64, 97, 1, 128]]


@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, data_type: str) -> None:
    pair = make_pair(family, data_type)
    for seed, lengths in enumerate(LENGTHS):
        check(pair, lengths, seed=seed)


@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
        {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
        {"hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1200},
        {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 100},
        {"hidden_size": 30, "num_attention_heads": 3, "intermediate_size": 50},
        {"hidden_size": 160, "num_attention_heads": 2, "intermediate_size": 96},
        {"hidden_size": 128, "num_attention_heads": 1, "hidden_act": "gelu_new"},
        {"hidden_size": 256, "num_attention_heads": 4, "hidden_act": "relu", "num_hidden_layers": 1},
    ],
    ids=lambda sizes: "-".join(str(value) for value in sizes.values()),
)
def test_shape(sizes: dict[str, Any], data_type: str) -> None:
    pair = make_pair("bert", data_type, max_position_embeddings=600, **sizes)
    for seed, lengths in enumerate([[7], [384, 1, 200], [400], [300, 1, 150], [31] * 40, [600, 599, 2]]):
        check(pair, lengths, seed=seed)


@pytest.mark.parametrize("data_type", DTYPES)
def test_a_projection_on_every_path(data_type: str) -> None:
    sizes = {"hidden_size": 256, "embedding_size": 128, "num_attention_heads": 4, "intermediate_size": 1024}
    pair = make_pair("electra", data_type, max_position_embeddings=400, **sizes)
    for seed, lengths in enumerate([[7], [32], [128], [90, 3, 200], [384, 1, 200], [31] * 40, [384] * 9]):
        check(pair, lengths, seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_as_packed(family: str) -> None:
    pair = make_pair(family, "fp16", prepared=False)
    for seed, lengths in enumerate(LENGTHS):
        check(pair, lengths, seed=seed)


@pytest.mark.parametrize("data_type", DTYPES)
def test_long(data_type: str) -> None:
    pair = make_pair("bert", data_type, hidden_size=128, num_attention_heads=2, max_position_embeddings=4096)
    check(pair, [4096, 1, 2047])


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "roberta-prelayernorm"])
def test_outputs(family: str) -> None:
    pair = make_pair(family, "fp16")
    ids, mask = batch(pair, [9, 1, 40, 23], columns=48)
    hidden = encode(pair, ids, mask)
    first = encode(with_output(pair, "first"), ids, mask)
    assert torch.equal(first, hidden[:, 0])
    mean = encode(with_output(pair, "mean"), ids, mask)
    weights = mask.double()[..., None]
    expected = (hidden.double() * weights).sum(1) / weights.sum(1)
    assert_close(mean, expected.half(), expected.cpu())


@pytest.mark.parametrize("output", ["hidden", "first", "mean"])
def test_empty_sequences_give_zeros(output: str) -> None:
    pair = with_output(make_pair("bert", "fp16"), output)
    ids, mask = batch(pair, [4, 12, 7])
    full = encode(pair, ids, mask)
    emptied = mask.clone()
    emptied[1] = 0
    got = encode(pair, ids, emptied)
    assert not got[1].any()
    assert torch.equal(got[[0, 2]], full[[0, 2]])
    assert not encode(pair, ids, torch.zeros_like(mask)).any()


def test_holes_in_the_mask() -> None:
    pair = make_pair("bert", "fp32")
    ids, mask = batch(pair, [20, 31])
    mask[0, 5:9] = 0
    mask[1, 0] = 0
    valid = mask.bool()
    reference, plain = pair.reference(ids, mask, torch.float64), pair.reference(ids, mask, torch.float32)
    assert_close(encode(pair, ids, mask)[valid], plain[valid], reference[valid].cpu())


def test_an_id_outside_the_table_gives_nan_and_nothing_worse() -> None:
    pair = make_pair("bert", "fp16")
    ids, mask = batch(pair, [8, 8])
    expected = encode(pair, ids, mask)
    ids[0, 3] = 10**9
    got = encode(pair, ids, mask)
    assert torch.isnan(got[0]).any()
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize("pad", [1, 0, 199])
def test_pad_ids_within_a_text(data_type: str, pad: int) -> None:
    """Positions are transformers' own: counted by the pad id, whatever the mask says. Pad 1, 0 and the table's last."""
    pair = make_pair("roberta", data_type, pad_token_id=pad, max_position_embeddings=300)
    ids, mask = batch(pair, [40, 17, 9], columns=48)
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).cuda() < 0.2
    ids = torch.where(drawn & mask.bool(), pair.pad, ids)
    mask[0, 11] = 0  # a hole, which positions do not see
    valid = mask.bool()
    reference, plain = pair.reference(ids, mask, torch.float64), pair.reference(ids, mask, pair.dtype)
    assert_close(encode(pair, ids, mask)[valid], plain[valid], reference[valid].cpu())


def test_archives_of_0_1_0_get_the_same_bits() -> None:
    """Through the operators that their traces hold."""
    pair = make_pair("bert", "fp16", prepared=False)
    ids, mask = batch(pair, [40, 17, 9])
    packed, spec = pair.packed, pair.packed.spec
    sizes = (spec.layers, spec.hidden, spec.width, spec.intermediate)
    matrices = torch.ops.efft.prepare(packed.matrices, *sizes, packed.vectors)
    tables = (packed.word, packed.position, packed.segment)
    options = (spec.layers, spec.hidden, spec.heads, spec.intermediate, spec.activation, False, spec.epsilon, 0, False)
    got = torch.ops.efft.encoder(
        ids, torch.zeros_like(ids), mask, *tables, matrices, packed.vectors, *options, "hidden"
    )
    packed.matrices = prepare(spec, packed).matrices
    assert torch.equal(got, encode(pair, ids, mask))


def test_bad_arguments_raise() -> None:
    pair = make_pair("bert", "fp16")
    ids, mask = batch(pair, [8])
    with pytest.raises(RuntimeError, match="ids"):
        encode(pair, ids.int(), mask)
    with pytest.raises(RuntimeError, match="mask"):
        pair.packed(ids, torch.zeros_like(ids), mask.cpu())
    pair.packed.matrices = pair.packed.matrices[:-1]
    with pytest.raises(RuntimeError, match="matrices"):
        encode(pair, ids, mask)
