"""What the builder hands to the engines means what transformers computes: in float64, without an engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builder.encoder import pack, tensors_of
from builder.families import family_of, spec_of
from tests.checkpoints import NEWER, random_model
from tests.parity.plain import PlainEncoder

pytestmark = pytest.mark.usefixtures("cpu_library")

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in NEWER),
    ("mpnet", {"relative_attention_num_buckets": 40}),
    ("albert", {"inner_group_num": 2, "num_hidden_layers": 2, "num_hidden_groups": 1}),
    ("deberta-v2", {"share_att_key": False, "pos_att_type": ["p2c", "c2p"]}),
    ("deberta-v2", {"pos_att_type": ["c2p"], "norm_rel_ebd": "none", "type_vocab_size": 1}),
    ("deberta-v2", {"position_buckets": -1, "max_relative_positions": 20, "type_vocab_size": 2}),
    ("deberta-v2", {"relative_attention": False, "position_biased_input": True}),
    ("deberta-v2", {"embedding_size": 40, "position_biased_input": True}),
    ("modernbert", {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1}),
    ("modernbert", {"layer_types": ["sliding_attention"] * 4}),
    ("modernbert", {"layer_types": ["full_attention"] * 4}),
    ("eurobert", {"head_dim": 24, "attention_bias": True, "mlp_bias": True}),
    ("eurobert", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}),
    ("nomic_bert", {"type_vocab_size": 1, "head_dim": 20}),
    ("gte", {"type_vocab_size": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}}),
    ("gte", {"type_vocab_size": 2}),
    ("roformer", {"embedding_size": 64, "type_vocab_size": 1}),
    ("esm", {"position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    ("esm", {"token_dropout": False}),
    ("t5", {"feed_forward_proj": "relu", "relative_attention_num_buckets": 12, "relative_attention_max_distance": 40}),
    ("ernie", {"use_task_id": False}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "sizes"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_they_mean_what_transformers_computes(family: str, sizes: dict[str, Any]) -> None:
    model: Any = random_model(family, "embedding", vocab_size=60, **sizes)
    spec = spec_of(model.config)
    packed = pack(tensors_of(model), family_of(model.config), spec, torch.float32)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 60, (3, 90), generator=generator)
    ids[:, 5] = 4  # ESM's mask
    mask = (torch.arange(90) < torch.tensor([90, 61, 1])[:, None]).long()
    pad = model.config.pad_token_id or 0
    ids = torch.where(mask.bool(), ids, pad)
    segments = ((torch.arange(90) > 40).expand(3, -1) & mask.bool()).long() * int(spec.types)
    extra = {"token_type_ids": segments} if spec.types and getattr(model.config, "type_vocab_size", 1) > 1 else {}
    segments = segments if extra else torch.zeros_like(ids)
    with torch.no_grad():
        expected = model.double()(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
    actual = PlainEncoder(spec, packed)(ids, segments, mask)
    valid = mask.bool()
    error = (actual - expected)[valid].square().mean().sqrt() / expected[valid].square().mean().sqrt()
    assert error < 3e-6, f"{error:.1e}"
