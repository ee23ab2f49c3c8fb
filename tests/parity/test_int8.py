"""8-bit models of every family and task: the cosines hold, and a broken one is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builder import archive
from builder.checkpoint import Checkpoint, load
from builder.encoder import pack, tensors_of
from builder.families import EncoderSpec, spec_of
from builder.gate import parity
from builder.gate.verdict import CosineVerdict
from builder.inspection import read_facts
from builder.models import PackedModel, encoder_of
from builder.quantisation.calibration import hidden_states, plain_sentences
from builder.quantisation.eight_bits import (
    expected_states,
    gate_inputs,
    judge,
    measure,
    quantised_model,
    rounder_of,
)
from builder.quantisation.emulated import emulated
from builder.quantisation.quantise import Rounder
from builder.quantisation.ranking import by_answers
from builder.quantisation.schemes import SHARES, shares
from builder.slots import matrices
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.runtime import TracedModel
from tests import newer_families as newer
from tests.checkpoints import FAMILIES, HEADS, NEWER, TEXTS, make_checkpoint

pytestmark = pytest.mark.usefixtures("cpu_library")


def _checkpoint(folder: Path, family: str, task: str) -> Checkpoint:
    """A random checkpoint with weights of a trained one's size: larger ones turn vectors by much in bf16 already."""
    make_checkpoint(folder, family, task)
    file = folder / "model.safetensors"
    tensors = load_file(file)  # but for RoFormer's sines and cosines, which are no weights
    halved = {k: v / 2 if v.dim() == 2 and "embed_positions" not in k else v for k, v in tensors.items()}
    save_file(halved, file, {"format": "pt"})
    return load(SetupConfig(model_name=str(folder)))


def _pooling(task: str) -> str | None:
    return "mean" if task == "embedding" else None


def _verdict(checkpoint: Checkpoint, model: PackedModel) -> CosineVerdict:
    return judge(checkpoint, TracedModel(model, torch.device("cpu")), _pooling(checkpoint.task), None)


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_and_task(tmp_path: Path, family: str, task: str) -> None:
    checkpoint = _checkpoint(tmp_path, family, task)
    model, facts = quantised_model(checkpoint, _pooling(task), None)
    assert model.encoder.matrices.dtype == torch.uint8
    assert facts["matrices"] == len(matrices(spec_of(checkpoint.config)))
    verdict = _verdict(checkpoint, model)
    assert verdict.passed, verdict.line()
    assert verdict.token_cosine < 1 - 1e-6, "8 bits that change nothing are no 8 bits"


@pytest.mark.parametrize("family", NEWER)
def test_newer_family(tmp_path: Path, family: str) -> None:
    checkpoint = _checkpoint(tmp_path, family, newer.HEADS[family][0])
    model, _ = quantised_model(checkpoint, None, None)
    verdict = _verdict(checkpoint, model)
    assert verdict.passed, verdict.line()
    assert verdict.token_cosine < 1 - 1e-6, "8 bits that change nothing are no 8 bits"


def test_cls_pooling_is_judged_by_the_first_token(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, "bert", "embedding")
    model, _ = quantised_model(checkpoint, "cls", None)
    verdict = judge(checkpoint, TracedModel(model, torch.device("cpu")), "cls", None)
    assert verdict.passed, verdict.line()
    assert verdict.pooled_cosine >= verdict.token_cosine


def test_a_broken_encoder_and_a_broken_head_are_noticed(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, "bert", "sequence_classification")
    model, _ = quantised_model(checkpoint, None, None)
    assert _verdict(checkpoint, model).passed
    gamma = slice(2 * 64 + 4 * 64, 2 * 64 + 4 * 64 + 32)  # half of the first layer's attention LayerNorm
    model.encoder.vectors[gamma] *= 2
    verdict = _verdict(checkpoint, model)
    assert not verdict.passed
    assert "parity FAILED: worst token cosine" in verdict.line()
    model.encoder.vectors[gamma] /= 2
    with torch.no_grad():
        model.head.layers[-1].weight *= 1.1
    verdict = _verdict(checkpoint, model)
    assert not verdict.passed
    assert verdict.head_error > 0.01


def test_where_a_device_is_refused_more_matrices_are_kept(
    tmp_path: Path, cpu_library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice is measured on this CPU; a GPU, or another CPU, rounds elsewhere."""
    folder = make_checkpoint(tmp_path / "model", "bert", "sequence_classification")
    config = SetupConfig.model_validate(
        {"model_name": str(folder), "name": "tiny", "scheme": "int8", "compute": "bf16"}
    )
    kept: list[list[str]] = []
    prove, refused = archive.prove, parity.Refused("parity FAILED on cuda:0: worst; no archive was written")

    def first_refused(stage: Path, *arguments: Any) -> Any:
        kept.append(ArchiveFacts.load(stage / "archive.json").quantisation["kept"])
        if len(kept) == 1:
            raise refused
        return prove(stage, *arguments)

    monkeypatch.setattr(archive, "prove", first_refused)
    libraries = [archive.LibraryFile(cpu_library, "cpu", [])]
    path, verdict = archive.build(config, libraries, tmp_path / "store", lambda _: None)
    assert verdict.passed
    assert len(kept[0]) < len(kept[1]) < 8
    assert read_facts(path).quantisation["kept"] == kept[1]
    assert f"parity FAILED on cuda:0: worst; once more with {len(kept[1])} matrices" in capsys.readouterr().err
    monkeypatch.setattr(archive, "prove", lambda *_: (_ for _ in ()).throw(refused))
    with pytest.raises(parity.Refused, match="no archive was written"):
        archive.build(config, libraries, tmp_path / "none", lambda _: None)
    assert not list((tmp_path / "none").glob("*.mar"))


def test_other_types_have_nothing_to_choose() -> None:
    assert (len(shares("none")), shares("int8"), shares("fp8")) == (1, SHARES, SHARES)


def test_an_archive_for_a_gpu_holds_in_the_emulation_too(tmp_path: Path) -> None:
    """Which rounds what lies between two integers to other sides than the engine here."""
    checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path, "bert", "sequence_classification"))))
    base = encoder_of(checkpoint, checkpoint.load_model())
    chosen, inputs = gate_inputs(checkpoint, None)
    cases = expected_states(checkpoint, base, inputs)
    rounder = rounder_of(checkpoint, base, "int8", [batch for _, batch in chosen.inputs])
    kept = {gpu: quantised_model(checkpoint, None, None, gpu=gpu)[1]["kept"] for gpu in (False, True)}
    distances = {}
    for gpu, names in kept.items():
        with emulated(checkpoint, base, rounder, names, torch.bfloat16):
            distances[gpu] = measure(cases, lambda batch: hidden_states(checkpoint, base, batch), "first").distance
    assert distances[True] <= 0.9
    assert len(kept[False]) <= len(kept[True]) < 8
    assert distances[True] <= distances[False]


def _rounder_of(checkpoint: Checkpoint) -> tuple[Any, Any, Rounder]:
    stock = checkpoint.load_model()
    base = encoder_of(checkpoint, stock)
    chosen, _ = gate_inputs(checkpoint, None)
    return stock, base, rounder_of(checkpoint, base, "int8", [batch for _, batch in chosen.inputs])


@pytest.mark.parametrize("task", ["sequence_classification", "question_answering", "embedding", "fill_mask"])
def test_what_moves_the_answers_most_is_kept_first(tmp_path: Path, task: str) -> None:
    checkpoint = _checkpoint(tmp_path, "bert", task)
    stock, base, rounder = _rounder_of(checkpoint)
    every = [slot.name for slot in rounder.slots]
    served = pack(tensors_of(base), checkpoint.family, spec_of(checkpoint.config), torch.bfloat16)
    ranked = by_answers(checkpoint, stock, served, _pooling(task), rounder, [plain_sentences(checkpoint)])
    before = ranked(every)
    assert sorted(before) == sorted(every)
    mildest = rounder.rounded(before[-1])
    mildest.numbers.zero_()
    assert ranked(every)[0] == before[-1]


def test_an_archive_is_built_alike_each_time(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, "bert", "sequence_classification")
    first, second = (quantised_model(checkpoint, None, None) for _ in range(2))
    assert first[1] == second[1]
    assert torch.equal(first[0].encoder.matrices, second[0].encoder.matrices)


def test_fitted_integers_err_less_than_rounded_ones(tmp_path: Path) -> None:
    """On text that they were not fitted to."""
    checkpoint = _checkpoint(tmp_path, "bert", "sequence_classification")
    _, base, rounder = _rounder_of(checkpoint)
    plain = Rounder(*_arenas(checkpoint, base), rounder.reach)
    tokens = checkpoint.load_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    batch = (tokens.input_ids, torch.zeros_like(tokens.input_ids), tokens.attention_mask)
    exact = hidden_states(checkpoint, base, batch)
    errors = []
    for one in (rounder, plain):
        with emulated(checkpoint, base, one, ()):
            errors.append(float((hidden_states(checkpoint, base, batch) - exact)[batch[2].bool()].norm()))
    assert errors[0] < 0.9 * errors[1]


def _arenas(checkpoint: Checkpoint, base: Any) -> tuple[torch.Tensor, torch.Tensor, EncoderSpec]:
    spec = spec_of(checkpoint.config)
    packed = pack(tensors_of(base), checkpoint.family, spec, torch.float32)
    return packed.matrices, packed.vectors, spec


@pytest.mark.parametrize("family", NEWER)
def test_the_emulation_of_a_newer_family_errs_as_8_bits_do(tmp_path: Path, family: str) -> None:
    """Grouped queries among them, whose keys and values have fewer rows."""
    checkpoint = _checkpoint(tmp_path, family, newer.HEADS[family][0])
    _, base, rounder = _rounder_of(checkpoint)
    cases = expected_states(checkpoint, base, gate_inputs(checkpoint, None)[1][:1])
    with emulated(checkpoint, base, rounder, ()):
        found = measure(cases, lambda batch: hidden_states(checkpoint, base, batch), "mean")
    assert 0.9 < found.token < 1 - 1e-6
