"""fp8 archives where there is no GPU: weights by the CPU library, activations by emulation; matrices kept by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builder.checkpoint import Checkpoint, load
from builder.errors import BuildError
from builder.families import spec_of
from builder.models import encoder_of
from builder.quantisation import eight_bits
from builder.quantisation.calibration import calibration, hidden_states
from builder.quantisation.eight_bits import judge, quantised_model, rounder_of
from builder.quantisation.emulated import emulated
from builder.slots import matrices
from handler.config import SetupConfig
from handler.runtime import TracedModel
from tests.checkpoints import make_checkpoint
from tests.kernels.test_quantised import Arena

pytestmark = pytest.mark.usefixtures("cpu_library")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A random one with weights of a trained one's size: larger ones turn vectors by much in 8 bits."""
    make_checkpoint(tmp_path, "bert", "sequence_classification")
    file = tmp_path / "model.safetensors"
    save_file({k: v / 3 if v.dim() == 2 else v for k, v in load_file(file).items()}, file, {"format": "pt"})
    return load(SetupConfig(model_name=str(tmp_path)))


def test_a_model_in_fp8_passes_and_says_what_was_chosen(checkpoint: Checkpoint) -> None:
    model, facts = quantised_model(checkpoint, None, None, "fp8")
    names = [slot.name for slot in matrices(spec_of(checkpoint.config))]
    assert facts["matrices"] == len(names)
    eight = [name for name in names if name not in facts["kept"]]
    assert eight, "nothing is left in 8 bits"
    assert facts["fixed_steps"] == [name for name in eight if name.endswith("output")]
    arena = Arena(model.encoder.matrices)
    assert [entry[0] for entry in arena.entries] == [4 if name in eight else 1 for name in names]
    verdict = judge(checkpoint, TracedModel(model, torch.device("cpu")), None, None, "fp8", facts["kept"])
    assert verdict.passed, verdict.line()
    assert verdict.token_cosine < 1 - 1e-5, "8 bits that change nothing are no 8 bits"


def test_activations_that_err_too_much_fail_the_gate(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU library does not round them: only the emulation can tell."""
    model, facts = quantised_model(checkpoint, None, None, "fp8")
    rounder = eight_bits.rounder_of

    def coarse(*arguments: object) -> object:
        found = rounder(*arguments)  # type: ignore[arg-type]
        found.steps = {name: replace(step, size=40 * step.size * 448) for name, step in found.steps.items()}
        return found

    monkeypatch.setattr(eight_bits, "rounder_of", coarse)
    verdict = judge(checkpoint, TracedModel(model, torch.device("cpu")), None, None, "fp8", facts["kept"])
    assert not verdict.passed


def test_emulation_leaves_the_model_as_it_was(checkpoint: Checkpoint) -> None:
    base = encoder_of(checkpoint, checkpoint.load_model())
    (_, inputs), *_ = calibration(checkpoint, None).inputs
    before = hidden_states(checkpoint, base, inputs)
    rounder = rounder_of(checkpoint, base, "fp8", [inputs])
    with emulated(checkpoint, base, rounder, ()):
        assert not torch.equal(hidden_states(checkpoint, base, inputs), before)
    assert torch.equal(hidden_states(checkpoint, base, inputs), before)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_matrices_are_kept_by_hand(checkpoint: Checkpoint, scheme: str) -> None:
    model, facts = quantised_model(checkpoint, None, None, scheme, "bf16", ["layer.1.output", "layer.*.qkv"])
    assert set(facts["kept_by_hand"]) == {"1.output", "0.qkv", "1.qkv"}
    assert set(facts["kept_by_hand"]) <= set(facts["kept"])
    kinds = dict(
        zip(
            (slot.name for slot in matrices(spec_of(checkpoint.config))),
            (entry[0] for entry in Arena(model.encoder.matrices).entries),
            strict=True,
        )
    )
    assert all(kinds[name] == 1 for name in facts["kept"])


def test_a_name_that_no_matrix_has_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(BuildError, match=r"keep: no matrix is named 'layer.9.output'; there are layer.N.PART"):
        quantised_model(checkpoint, None, None, "int8", "bf16", ["layer.9.output"])
