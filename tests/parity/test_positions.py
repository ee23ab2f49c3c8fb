"""RoBERTa-like families count positions from the pad id, wherever it stands: equal to transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from builder.encoder import encode, pack
from builder.errors import BuildError
from builder.families import FAMILIES, family_of, max_positions, spec_of
from tests.checkpoints import random_model

pytestmark = pytest.mark.usefixtures("cpu_library")

COUNTING = [name for name, family in FAMILIES.items() if family.positions == "ids"]
FROM_CONFIG = [name for name in COUNTING if name not in ("mpnet", "esm")]
"""MPNet counts from 1 whatever its config says, and an ESM with rotary positions counts nothing."""
WORDS = 60


def _batch(pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad ids at both ends of texts and within them, pads on the left, pads that are other ids, and a text of pads."""
    ids = torch.randint(2, WORDS - 1, (5, 14), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    ids[0, [0, 3, 4, 13]] = pad
    ids[1, 9:] = pad
    mask[1, 9:] = 0
    ids[2, :5] = pad
    mask[2, :5] = 0
    mask[3, 6:] = 0
    ids[4] = pad
    return ids, mask


@pytest.mark.parametrize("pad", [0, 1, WORDS - 1], ids=["first", "second", "last"])
@pytest.mark.parametrize("family", COUNTING)
def test_pad_ids_anywhere_count_as_in_transformers(family: str, pad: int) -> None:
    model = random_model(family, "embedding", vocab_size=WORDS, pad_token_id=pad)
    ids, mask = _batch(pad)
    spec = spec_of(model.config)
    weights = pack(model.state_dict(), family_of(model.config), spec, torch.float32)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    valid = mask.bool()
    actual = encode(spec, weights, (ids, torch.zeros_like(ids), mask), "hidden")
    torch.testing.assert_close(actual[valid], expected[valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_other_families_need_no_pad_id(family: str) -> None:
    model = random_model(family, "embedding", vocab_size=WORDS, pad_token_id=None)
    ids, mask = _batch(0)
    spec = spec_of(model.config)
    weights = pack(model.state_dict(), family_of(model.config), spec, torch.float32)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    actual = encode(spec, weights, (ids, torch.zeros_like(ids), mask), "hidden")
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FROM_CONFIG)
def test_without_a_pad_id_nothing_can_be_counted(family: str) -> None:
    model = random_model(family, "embedding", vocab_size=WORDS, pad_token_id=None)
    with pytest.raises(TypeError):  # transformers cannot run it either
        model(input_ids=torch.tensor([[3, 4]]))
    with pytest.raises(BuildError, match=rf"pad_token_id is missing from config.json; {family} counts positions"):
        spec_of(model.config)


def test_the_longest_sequence_ends_with_the_table() -> None:
    config = SimpleNamespace(
        model_type="roberta", hidden_size=64, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8,
        hidden_act="gelu", max_position_embeddings=60, pad_token_id=50,
    )  # fmt: skip
    assert max_positions(config) == 9
    config.pad_token_id = 59
    with pytest.raises(BuildError, match="max_position_embeddings 60 leaves no position for a token"):
        max_positions(config)
