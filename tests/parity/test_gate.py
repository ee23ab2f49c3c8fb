"""The gate, end to end: it passes what is right, for every family and task, and sees each thing that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.archive import LibraryFile, write_files
from builder.checkpoint import load
from builder.errors import BuildError
from builder.gate import parity
from builder.gate.parity import Verdict, gpu_of, judge_stage
from builder.gate.probes import probes
from builder.gate.references import FillMaskReference
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from tests.checkpoints import FAMILIES, HEADS, make_checkpoint


def staged(folder: Path, model: Path, libraries: list[LibraryFile], **keys: Any) -> tuple[Path, SetupConfig]:
    stage = folder / "stage"
    stage.mkdir(parents=True)
    config = SetupConfig.model_validate({"model_name": str(model), "data_type": "fp32", **keys})
    write_files(stage, "tiny", config, load(config), libraries, lambda _: None)
    return stage, config


def test_every_request_to_a_short_model_keeps_its_mask(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, "bert", "fill_mask")
    reference = FillMaskReference(load(SetupConfig(model_name=str(model), max_length=16)), 16)
    asked = [payload["text"] for _, payload in reference.payloads()]
    assert len(asked) > 20
    for text in asked:
        kept = reference.tokenizer(text, truncation=True, max_length=16).input_ids
        assert reference.tokenizer.mask_token_id in kept, text


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_encoder_answers_as_transformers_does(tmp_path: Path, family: str, task: str) -> None:
    """What lies around the encoder: tokenizers of every kind, pairs, special tokens, long texts, task code."""
    stage, config = staged(tmp_path, make_checkpoint(tmp_path / "checkpoint", family, task), [], kind="ths")
    verdict = judge_stage(stage, config)
    assert verdict.passed, verdict.line()
    assert verdict.requests >= 20 or task == "embedding"


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_cross_encoder_answers_as_transformers_does(tmp_path: Path, family: str) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", family, "sequence_classification", num_labels=1)
    stage, config = staged(tmp_path, model, [], kind="ths", task="rerank")
    assert judge_stage(stage, config).passed


Change = Callable[[Path], None]


def _facts(**changes: Any) -> Change:
    def change(stage: Path) -> None:
        path = stage / "archive.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _tokenizer(change: Callable[[Any], None]) -> Change:
    def changed(stage: Path) -> None:
        path = stage / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return changed


BROKEN: dict[str, tuple[str, str, Change]] = {
    "labels in another order": ("bert", "sequence_classification", _facts(labels=["LABEL_1", "LABEL_0", "LABEL_2"])),
    "scores of another kind": ("bert", "sequence_classification", _facts(problem_type="multi_label_classification")),
    "pairs in one segment": ("bert", "sequence_classification", _facts(uses_segments=False)),
    "a tokenizer that keeps capitals": (
        "bert", "embedding", _tokenizer(lambda t: t["normalizer"].update(lowercase=False)),
    ),
    "a tokenizer without special tokens": ("roberta", "embedding", _tokenizer(lambda t: t.update(post_processor=None))),
    "a tokenizer that splits otherwise": (
        "xlm-roberta", "token_classification", _tokenizer(lambda t: t.update(pre_tokenizer={"type": "Whitespace"})),
    ),
    "special tokens read as text": ("bert", "token_classification", _tokenizer(lambda t: t.update(added_tokens=[]))),
    "another mask": ("bert", "fill_mask", _facts(mask_id=1)),
    "a limit that is too short": ("bert", "embedding", _facts(max_positions=20)),
    "normalised otherwise": ("bert", "embedding", _facts(normalize=True)),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_around_the_encoder_is_seen(tmp_path: Path, what: str) -> None:
    family, task, change = BROKEN[what]
    stage, config = staged(tmp_path, make_checkpoint(tmp_path / "checkpoint", family, task), [], kind="ths")
    change(stage)
    with pytest.raises(BuildError, match=r"^parity FAILED: [^\n]*$"):  # noqa: PT012 - either way of refusing
        verdict = judge_stage(stage, config)
        assert verdict.passed is False
        raise BuildError(verdict.line())


def test_other_types_are_asked_too(tmp_path: Path) -> None:
    """Their figures may be as coarse as the type; labels, ids and offsets may not."""
    model = make_checkpoint(tmp_path / "checkpoint", "bert")
    stage, config = staged(tmp_path, model, [], kind="ths", data_type="bf16")
    assert judge_stage(stage, config).requests >= 20
    _facts(labels=["LABEL_1", "LABEL_0", "LABEL_2"])(stage)
    with pytest.raises(BuildError, match="transformers says LABEL_"):
        judge_stage(stage, config)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_probes_hold_pads_special_tokens_and_both_segments(tmp_path: Path, family: str) -> None:
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, family))))
    drawn = dict(probes(checkpoint))
    inside = {name: ids[mask.bool()] for name, (ids, _, mask) in drawn.items()}
    pad, special = checkpoint.config.pad_token_id, checkpoint.tokenizer.all_special_ids
    for name, ids in inside.items():
        if name != "one token":
            assert (ids == pad).any(), name
    everywhere = torch.cat(list(inside.values()))
    assert all((everywhere == index).any() for index in special)
    assert (drawn["6 pairs"][1].sum() > 0) == (family == "bert")
    assert (drawn["texts"][1].sum() > 0) == (family == "bert")


def test_positions_that_ignore_pads_within_a_text_are_seen(tmp_path: Path) -> None:
    """transformers counts a RoBERTa's positions by pad id: a pad within a text has none of its own."""
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, "roberta", "embedding"))))
    from builder.gate.parity import compare
    from builder.models import stock_model

    stock = stock_model(checkpoint, torch.float32, pooling="mean")

    def by_mask(ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        positions = mask.cumsum(1) * mask + checkpoint.config.pad_token_id
        hidden = stock.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        return ((hidden * weights).sum(1) / weights.sum(1),)

    assert compare(checkpoint, stock, "fp32", "mean").passed
    assert not compare(checkpoint, by_mask, "fp32", "mean").passed


def test_the_cuda_library_is_proven_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice alone; tests/gpu/test_gate.py runs it."""
    library = {"sha256": "0", "device": "cuda", "targets": ["80", "90a"]}
    make_checkpoint(tmp_path / "checkpoint", "bert")
    stage, _ = staged(tmp_path, tmp_path / "checkpoint", [], kind="ths")
    facts = ArchiveFacts.load(stage / "archive.json")
    carrying = ArchiveFacts.model_validate({**facts.model_dump(), "libraries": {"libefft_cuda.so": library}})
    assert gpu_of(carrying) is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(7, 5), (9, 0)][device])
    assert gpu_of(carrying) == 1
    assert gpu_of(facts) is None


@pytest.mark.parametrize("wrong", [False, True])
def test_a_cuda_library_that_is_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    """With the CPU in the GPU's place."""
    stage, config = staged(tmp_path, make_checkpoint(tmp_path / "checkpoint", "bert"), [], kind="ths")
    load_model, compare = parity.load_model, parity.compare

    def loaded(folder: Path, facts: ArchiveFacts, config: SetupConfig, gpu: int | None = None) -> Any:
        model = load_model(folder, facts, config)
        if gpu is None or not wrong:
            return model
        return lambda *inputs: tuple(1.01 * output for output in model(*inputs))

    def compared(*arguments: Any) -> Verdict:
        return replace(compare(*arguments[:4]), device=arguments[4] if len(arguments) > 4 else "cpu")

    monkeypatch.setattr(parity, "gpu_of", lambda facts: 0)
    monkeypatch.setattr(parity, "load_model", loaded)
    monkeypatch.setattr(parity, "compare", compared)
    verdict = judge_stage(stage, config)
    assert verdict.passed is not wrong
    assert "on cuda:0: error" in verdict.line()
    assert isinstance(verdict, Verdict)
    assert (verdict.on_gpu is None) == wrong
