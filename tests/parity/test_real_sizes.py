"""Random encoders of the sizes of each family's base model through the gate; minutes each, so asked for by name.

EFFT_REAL_SIZES="mpnet modernbert" python -m pytest -n 0 tests/parity/test_real_sizes.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from builder.checkpoint import load
from builder.gate.parity import compare
from builder.models import DTYPES, packed_model
from handler.config import SetupConfig
from tests.checkpoints import make_checkpoint

BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SIZES: dict[str, dict[str, Any]] = {
    "ernie": {**BERT, "max_position_embeddings": 2048},
    "mpnet": {**BERT, "max_position_embeddings": 514},
    "albert": {**BERT, "embedding_size": 128, "num_hidden_groups": 1, "max_position_embeddings": 512},
    "deberta-v2": {**BERT, "position_buckets": 256, "max_position_embeddings": 512},
    "modernbert": {
        **BERT, "num_hidden_layers": 22, "intermediate_size": 1152, "local_attention": 128,
        "max_position_embeddings": 8192,
    },
    "eurobert": {**BERT, "num_key_value_heads": 12, "max_position_embeddings": 8192},
    "nomic_bert": {**BERT, "max_position_embeddings": 8192},
    "gte": {**BERT, "max_position_embeddings": 8192},
    "jina_embeddings_v3": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "max_position_embeddings": 8194,
    },
    "roformer": {**BERT, "embedding_size": 768, "max_position_embeddings": 1536},
    "esm": {
        "hidden_size": 480, "num_hidden_layers": 12, "num_attention_heads": 20, "intermediate_size": 1920,
        "max_position_embeddings": 1026,
    },
    "t5": {**BERT, "d_kv": 64, "feed_forward_proj": "relu"},
}  # fmt: skip
ASKED = os.environ.get("EFFT_REAL_SIZES", "").split()


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize("family", SIZES)
def test_base(tmp_path: Path, family: str, data_type: str) -> None:
    if family not in ASKED and f"{family}:{data_type}" not in ASKED:
        pytest.skip(f"minutes long; set EFFT_REAL_SIZES={family} to have it run")
    longest = os.environ.get("EFFT_REAL_LENGTH")
    folder = make_checkpoint(tmp_path, family, "embedding", **SIZES[family])
    checkpoint = load(SetupConfig(model_name=str(folder), max_length=int(longest) if longest else None))
    verdict = compare(checkpoint, packed_model(checkpoint, DTYPES[data_type], pooling="mean"), data_type, "mean")
    print(family, data_type, verdict.line())
    assert verdict.passed, verdict.line()
