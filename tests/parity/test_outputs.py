"""The gate on zero-shot classifiers and on embeddings of several outputs: it passes what is right and sees what is not.

References are transformers' pipeline, sentence-transformers, and for BGE-M3 its definition in plain torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.archive import LibraryFile, write_files
from builder.checkpoint import load
from builder.errors import BuildError
from builder.gate.parity import judge_stage
from handler.config import SetupConfig
from tests.output_folders import make_colbert, make_m3, make_nli, make_pylate, make_splade, make_stanford
from tests.sentence_folders import edit

EXPANDED = {"query_expansion": {"strategy": "min", "length": 14, "attend": True}, "document_length": 25}
CASES: dict[str, tuple[Callable[..., Path], dict[str, Any], dict[str, Any]]] = {
    "zero-shot": (make_nli, {}, {"task": "zero_shot_classification"}),
    "zero-shot, two labels": (
        make_nli, {"family": "distilbert", "labels": ("entailment", "not")}, {"task": "zero_shot_classification"},
    ),
    "SPLADE": (make_splade, {}, {}),
    "SPLADE of RoBERTa, summed": (make_splade, {"family": "roberta", "pooling": "sum"}, {}),
    "SPLADE of version 5": (make_splade, {"module": "MLMTransformer", "activation": "log1p_relu"}, {}),
    "SPLADE, few": (make_splade, {"max_active_dims": 5}, {}),
    "ColBERT": (make_colbert, {}, {}),
    "ColBERT, expanded": (make_colbert, EXPANDED, {}),
    "ColBERT of PyLate": (make_pylate, {}, {}),
    "ColBERT of PyLate, unseen": (make_pylate, {"attend_to_expansion_tokens": False}, {"encoder": "stock"}),
    "ColBERT of Stanford": (make_stanford, {}, {}),
    "zero-shot of DeBERTa": (make_nli, {"family": "deberta-v2"}, {"task": "zero_shot_classification"}),
    "SPLADE of ModernBERT": (make_splade, {"family": "modernbert"}, {}),
    "ColBERT of ModernBERT": (make_colbert, {"family": "modernbert"}, {}),
    "BGE-M3": (make_m3, {}, {"task": "hybrid_embedding"}),
    "BGE-M3, lexical": (make_m3, {}, {"task": "sparse_embedding"}),
    "BGE-M3, token vectors": (make_m3, {}, {"task": "multi_vector_embedding"}),
}  # fmt: skip


@pytest.fixture
def staged(cpu_library: Path, tmp_path: Path) -> Callable[..., tuple[Path, SetupConfig]]:
    def make(name: str, **more: Any) -> tuple[Path, SetupConfig]:
        build, made, settings = CASES[name]
        stage = tmp_path / "stage"
        stage.mkdir()
        folder = build(tmp_path / "model", **made)
        given = {"model_name": str(folder), "threads": 1, **settings, **more}
        config = SetupConfig.model_validate(given)
        write_files(stage, "small", config, load(config), [LibraryFile(cpu_library, "cpu", [])], lambda _: None)
        return stage, config

    return make


@pytest.mark.parametrize("name", CASES)
def test_what_is_right_passes(staged: Callable[..., tuple[Path, SetupConfig]], name: str) -> None:
    verdict = judge_stage(*staged(name))
    assert verdict.passed, verdict.line()


HOW: list[dict[str, Any]] = [
    {"compute": "bf16"}, {"compute": "fp16", "format": "export"}, {"scheme": "int8"}, {"kind": "ori"}, {"kind": "ths"},
]  # fmt: skip


@pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(how.values()))
@pytest.mark.parametrize("name", ["zero-shot", "SPLADE", "ColBERT, expanded", "BGE-M3"])
def test_other_types_and_kinds_pass(
    staged: Callable[..., tuple[Path, SetupConfig]], name: str, how: dict[str, Any]
) -> None:
    verdict = judge_stage(*staged(name, **how))
    assert verdict.passed, verdict.line()


UNSEEN = {"token": 4, "length": 16, "attend": True}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "another label is entailment": ("zero-shot", {"entailment": 1}),
    "pairs in one segment": ("zero-shot", {"uses_segments": False}),
    "fewer weights": ("SPLADE", {"sparse": {"most": 5}}),
    "more weights": ("SPLADE, few", {"sparse": {"most": None}}),
    "special tokens weigh": ("BGE-M3, lexical", {"sparse": {"skip": []}}),
    "a token too many is left out": ("BGE-M3", {"sparse": {"skip": [0, 1, 2, 3, 6]}}),
    "the first token has a vector": ("BGE-M3", {"multi_vector": {"skip_first": False}}),
    "sums for means": ("BGE-M3, token vectors", {"multi_vector": {"mean": False}}),
    "punctuation counts": ("ColBERT", {"multi_vector": {"skip": []}}),
    "documents of any length": ("ColBERT, expanded", {"multi_vector": {"document_length": None}}),
    "no expansion": ("ColBERT, expanded", {"multi_vector": {"expansion": None}}),
    "seen that is unseen": ("ColBERT of PyLate, unseen", {"multi_vector": {"expansion": UNSEEN}}),
    "no prompts": ("ColBERT", {"prompts": {"query": "", "document": ""}}),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_seen(staged: Callable[..., tuple[Path, SetupConfig]], what: str) -> None:
    name, facts = WRONG[what]
    stage, config = staged(name, encoder="stock")
    right = json.loads((stage / "archive.json").read_text())
    for key, value in facts.items():
        facts = {**facts, key: {**right[key], **value} if isinstance(value, dict) else value}
    edit(stage / "archive.json", **facts)
    with pytest.raises(BuildError, match=r"^parity FAILED: [^\n]*$"):
        judge_stage(stage, config)
