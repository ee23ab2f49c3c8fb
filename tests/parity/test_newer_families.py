"""Families beyond BERT's kin: every head and type through the engine, and every constant that is wrong is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from builder.archive import LibraryFile
from builder.checkpoint import load
from builder.gate.parity import compare, judge_stage
from builder.models import DTYPES, packed_model
from handler.config import SetupConfig
from tests import newer_families as newer
from tests.checkpoints import NEWER, make_checkpoint
from tests.parity.test_gate import staged

pytestmark = pytest.mark.usefixtures("cpu_library")

HEADS = [(family, task) for family in NEWER for task in newer.HEADS[family]]
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("modernbert", "sequence_classification", {"classifier_pooling": "mean", "norm_bias": True}),
    ("eurobert", "sequence_classification", {"classifier_pooling": "mean"}),
    ("eurobert", "sequence_classification", {"classifier_pooling": "bos"}),
    ("deberta-v2", "fill_mask", {"legacy": False}),
    ("deberta-v2", "sequence_classification", {"pooler_hidden_act": "tanh", "share_att_key": False}),
    ("deberta-v2", "embedding", {"embedding_size": 40, "position_biased_input": True, "type_vocab_size": 2}),
    ("albert", "sequence_classification", {"inner_group_num": 2, "hidden_act": "gelu"}),
    ("esm", "fill_mask", {"position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    ("t5", "embedding", {"feed_forward_proj": "relu", "num_heads": 3, "d_kv": 20}),
    ("gte", "sequence_classification", {"type_vocab_size": 0}),
    ("nomic_bert", "embedding", {"hidden_size": 96, "num_attention_heads": 3, "type_vocab_size": 1}),
]


def verdict_of(folder: Path, data_type: str, pooling: str | None) -> Any:
    checkpoint = load(SetupConfig(model_name=str(folder)))
    return compare(checkpoint, packed_model(checkpoint, DTYPES[data_type], pooling=pooling), data_type, pooling)


@pytest.mark.parametrize(("family", "task"), HEADS, ids=lambda value: value)
def test_head(tmp_path: Path, family: str, task: str) -> None:
    verdict = verdict_of(make_checkpoint(tmp_path, family, task), "fp32", "mean" if task == "embedding" else None)
    assert verdict.passed, verdict.line()


@pytest.mark.parametrize(("family", "task", "sizes"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_variant(tmp_path: Path, family: str, task: str, sizes: dict[str, Any]) -> None:
    folder = make_checkpoint(tmp_path, family, task, **sizes)
    verdict = verdict_of(folder, "fp32", "cls" if task == "embedding" else None)
    assert verdict.passed, verdict.line()


@pytest.mark.parametrize("data_type", ["bf16", "fp16"])
@pytest.mark.parametrize("family", NEWER)
def test_type(tmp_path: Path, family: str, data_type: str) -> None:
    task = newer.HEADS[family][0]
    verdict = verdict_of(make_checkpoint(tmp_path, family, task), data_type, None)
    assert verdict.passed, verdict.line()


WHOLE = [(family, "embedding", "fp32") for family in NEWER] + [
    ("albert", "question_answering", "fp32"), ("deberta-v2", "question_answering", "fp32"),
    ("modernbert", "question_answering", "fp32"), ("deberta-v2", "token_classification", "bf16"),
    ("esm", "fill_mask", "fp16"), ("mpnet", "sequence_classification", "int8"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "task", "data_type"), WHOLE, ids=lambda value: value)
def test_an_archive_is_proven_end_to_end(
    cpu_library: Path, tmp_path: Path, family: str, task: str, data_type: str
) -> None:
    """Its files, loaded as a worker loads them, and requests through its tokenizer and task code."""
    model = make_checkpoint(tmp_path / "model", family, task)
    libraries = [LibraryFile(cpu_library, "cpu", [])]
    stage, config = staged(tmp_path, model, libraries, kind="thsext", data_type=data_type)
    verdict = judge_stage(stage, config)
    assert verdict.passed, verdict.line()
    assert verdict.requests >= 20 or task == "embedding"


def test_the_probes_end_where_their_work_would_take_too_long(tmp_path: Path) -> None:
    from builder.gate.probes import long_length, reaches

    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, "modernbert"))))
    assert long_length(checkpoint, 1e12) == checkpoint.longest == 140
    assert long_length(checkpoint, 1e6) == 128
    assert reaches(checkpoint) == [7, 8, 9, 17]
    assert torch.is_tensor(next(iter(checkpoint.load_model().parameters())))
