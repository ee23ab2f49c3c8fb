"""Each family with one constant that is a little wrong: the gate refuses it, whatever the type of the archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builder.archive import LibraryFile
from builder.checkpoint import Checkpoint, load
from builder.encoder import PackedWeights, pack, tensors_of
from builder.errors import BuildError
from builder.families import EncoderSpec, spec_of
from builder.gate import constants
from builder.gate.compare import compare
from builder.gate.constants import prove_constants
from builder.gate.parity import judge_stage
from builder.gate.probes import positional_probes
from builder.models import DTYPES, assemble, encoder_of
from builder.slots import slots
from handler.config import SetupConfig
from tests.checkpoints import make_checkpoint
from tests.parity.test_gate import staged

pytestmark = pytest.mark.usefixtures("cpu_library")

Vectors = Callable[[EncoderSpec, Tensor], None]


def theta(slot: str, wrong: float) -> Vectors:
    def change(spec: EncoderSpec, vectors: Tensor) -> None:
        size = spec.head_size
        at(spec, vectors, slot).copy_(wrong ** (-torch.arange(0, size, 2) / size))

    return change


def swapped(one: str, other: str) -> Vectors:
    def change(spec: EncoderSpec, vectors: Tensor) -> None:
        first, second = at(spec, vectors, one), at(spec, vectors, other)
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)

    return change


def at(spec: EncoderSpec, vectors: Tensor, name: str) -> Tensor:
    return next(slot for slot in slots(spec) if slot.name == name).of(vectors)


WRONG: dict[str, tuple[str, dict[str, Any] | Vectors]] = {
    "a window of one key less": ("modernbert", {"window": 6}),
    "a window of one key more": ("modernbert", {"window": 8}),
    "local layers one place on": ("modernbert", {"local": "1011"}),
    "the global theta": ("modernbert", theta("rotary", 150_000.0)),
    "the local theta": ("modernbert", theta("rotary_local", 10_500.0)),
    "ModernBERT's other GELU": ("modernbert", {"activation": "gelu_tanh"}),
    "RMSNorm taken for LayerNorm": ("eurobert", {"normalise": "layer"}),
    "EuroBERT's theta": ("eurobert", theta("rotary", 9_000.0)),
    "EuroBERT's gate": ("eurobert", {"activation": "gelu"}),
    "Nomic's theta": ("nomic_bert", theta("rotary", 10_000.0)),
    "GTE's scaling left out": ("gte", theta("rotary", 5_000.0)),
    "Jina's theta": ("jina_embeddings_v3", theta("rotary", 10_000.0)),
    "halves for interleaved pairs": ("roformer", {"rotary": "halves"}),
    "MPNet's farthest distance": ("mpnet", {"distance": 120}),
    "MPNet's positions": ("mpnet", {"pad": 0}),
    "DeBERTa's farthest distance": ("deberta-v2", {"distance": 150}),
    "DeBERTa's scale": ("deberta-v2", {"scale": 32**-0.5}),
    "positions of keys for those of queries": ("deberta-v2", swapped("0.position_keys", "0.position_queries")),
    "ALBERT's groups": ("albert", {"layer_of": (0, 1, 0, 1)}),
    "ERNIE's epsilon": ("ernie", {"epsilon": 1e-3}),
    "another token dropped": ("esm", {"dropout_token": 5}),
    "ESM's theta": ("esm", theta("rotary", 9_000.0)),
    "T5 with products scaled": ("t5", {"scale": 24**-0.5}),
    "T5's farthest distance": ("t5", {"distance": 120}),
    "T5's other GELU": ("t5", {"activation": "gelu"}),
}


@pytest.fixture(scope="module")
def packed(cpu_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    @cache
    def make(family: str) -> tuple[Checkpoint, EncoderSpec, PackedWeights]:
        task = "token_classification" if family == "t5" else "sequence_classification"
        checkpoint = load(SetupConfig(model_name=str(make_checkpoint(tmp_path_factory.mktemp("model"), family, task))))
        spec = spec_of(checkpoint.config)
        state = tensors_of(encoder_of(checkpoint, checkpoint.load_model()))
        return checkpoint, spec, pack(state, checkpoint.family, spec, torch.float32)

    return make


def laid_out(vectors: Tensor, right: EncoderSpec, wrong: EncoderSpec) -> Tensor:
    """The same vectors where a wrong spec looks for them, as much of each as it wants."""
    found = {slot.name: slot.of(vectors) for slot in slots(right) if slot.kind == "vector"}
    return torch.cat([found[slot.name][: slot.rows] for slot in slots(wrong) if slot.kind == "vector"])


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_constant_is_refused(packed: Callable[[str], Any], what: str) -> None:
    """In fp32, where 16 and 8 bits are proven too."""
    family, wrong = WRONG[what]
    checkpoint, spec, weights = packed(family)
    vectors = weights.vectors.clone()
    if callable(wrong):
        wrong(spec, vectors)
    else:
        right, spec = spec, replace(spec, **wrong)
        vectors = laid_out(vectors, right, spec)
    said = r"the encoder's constants are not the checkpoint's|the archive holds \d+ numbers beside its matrices"
    with pytest.raises(BuildError, match=rf"^parity FAILED: ({said})[^\n]*$"):
        prove_constants(checkpoint, vectors, spec.text(), None)


@pytest.mark.parametrize("family", sorted({family for family, _ in WRONG.values()}))
def test_the_right_ones_pass(packed: Callable[[str], Any], family: str) -> None:
    checkpoint, spec, weights = packed(family)
    assert prove_constants(checkpoint, weights.vectors, spec.text(), None).passed


@pytest.mark.parametrize("data_type", DTYPES)
@pytest.mark.parametrize("family", ["modernbert", "eurobert", "nomic_bert", "gte"])
def test_a_gate_for_what_it_opens_is_refused(packed: Callable[[str], Any], family: str, data_type: str) -> None:
    checkpoint, spec, weights = packed(family)
    matrices = weights.matrices.clone()
    slot = next(slot for slot in slots(spec) if slot.name == "1.intermediate")
    slot.of(matrices).copy_(slot.of(weights.matrices).roll(slot.rows // 2, 0))
    dtype = DTYPES[data_type]
    tables = {name: getattr(weights, name).to(dtype) for name in ("word", "position", "segment")}
    wrong = PackedWeights(**tables, matrices=matrices.to(dtype), vectors=weights.vectors)
    model = assemble(checkpoint, checkpoint.load_model(), wrong, None)
    assert not compare(checkpoint, model, data_type, None, inputs=positional_probes(checkpoint)).passed


@pytest.mark.parametrize("wrong", [False, True])
def test_a_16_bit_archive_is_refused_for_its_window(
    cpu_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    """Which its own error would not tell."""
    model = make_checkpoint(tmp_path / "model", "modernbert")
    stage, config = staged(tmp_path, model, [LibraryFile(cpu_library, "cpu", [])], kind="thsext", data_type="bf16")
    if not wrong:
        assert judge_stage(stage, config).passed
        return
    right = constants.archived

    def off_by_one(model: Any, facts: Any) -> tuple[Tensor, str]:
        vectors, text = right(model, facts)
        return vectors, text.replace("window=7", "window=8")

    monkeypatch.setattr("builder.gate.parity.archived", off_by_one)
    with pytest.raises(BuildError, match="constants are not the checkpoint's"):
        judge_stage(stage, config)
