"""What is not built says so in a line, with what it would cost the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builder import cli
from builder.checkpoint import Checkpoint, load
from builder.errors import BuildError
from builder.models import encoder_of
from builder.quantisation import unbuilt
from builder.quantisation.calibration import calibration, hidden_states
from handler.config import SetupConfig
from tests.checkpoints import make_checkpoint

pytestmark = pytest.mark.usefixtures("cpu_library")


def _checkpoint(folder: Path, **sizes: int) -> Checkpoint:
    return load(SetupConfig(model_name=str(make_checkpoint(folder, "bert", "sequence_classification", **sizes))))


def test_mode_two_is_refused_with_the_checkpoints_own_cosines(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    with pytest.raises(BuildError) as raised:
        unbuilt.refuse_mode_two(checkpoint, None)
    line = str(raised.value)
    assert len(line.splitlines()) == 1
    found = unbuilt.mode_two(checkpoint, None)
    assert f"worst token's cosine is {found.token:.4f} (allowed 0.99)" in line
    assert "use --scheme int8" in line


def test_a_stream_of_integers_errs_more_than_the_matrices_alone_and_more_with_coarser_steps(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    base = encoder_of(checkpoint, checkpoint.load_model())
    inputs = [batch for _, batch in calibration(checkpoint, None).inputs]
    exact = hidden_states(checkpoint, base, inputs[0])
    steps = unbuilt.residual_steps(checkpoint, base, inputs)
    assert len(steps) == 5, "the embeddings' LayerNorm, and two of either layer"
    assert len(unbuilt.residual_steps(checkpoint, base, inputs, products=True)) == 9
    errors = []
    for factor in (1, 4):
        with unbuilt.integer_residual(base, {path: factor * step for path, step in steps.items()}):
            errors.append(float((hidden_states(checkpoint, base, inputs[0]) - exact).norm() / exact.norm()))
    assert 1e-3 < errors[0] < errors[1]
    assert torch.equal(hidden_states(checkpoint, base, inputs[0]), exact), "the model is left as it was"


def test_a_step_reaches_as_far_as_the_values_do(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    base = encoder_of(checkpoint, checkpoint.load_model())
    seen: list[torch.Tensor] = []
    name = "encoder.layer.1.output.LayerNorm"
    handle = base.get_submodule(name).register_forward_hook(lambda _m, _g, made: seen.append(made))
    (_, batch), *_ = calibration(checkpoint, None).inputs
    steps = unbuilt.residual_steps(checkpoint, base, [batch])
    handle.remove()
    assert steps[name] == pytest.approx(float(seen[0][batch[2].bool()].abs().max()) / 127)


def test_pruned_weights_keep_the_two_largest_of_four() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.1, 0.2, -0.4, 0.3]])
    assert unbuilt.pruned24(weight).tolist() == [[0, -3, 2, 0, 0, 0, pytest.approx(-0.4), pytest.approx(0.3)]]


def test_every_matrix_of_the_encoder_is_pruned(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    model = checkpoint.load_model()
    unbuilt.prune24(checkpoint, encoder_of(checkpoint, model))
    shares = {n: float((p == 0).float().mean()) for n, p in model.named_parameters() if ".layer." in n and p.dim() == 2}
    assert len(shares) == 12
    assert set(shares.values()) == {0.5}


def test_the_command_line_says_so_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(tmp_path / "model", "bert", "sequence_classification")
    capsys.readouterr()
    store = tmp_path / "store"
    for options, words in (
        (["--sparse24"], "2:4 sparsity is not built"),
        (["--int8-mode", "2"], "int8 mode 2 (the residual stream in int8"),
        (["--int8-mode", "1", "--scheme", "fp8"], "--int8-mode 1 contradicts scheme fp8"),
    ):
        command = ["archive", "--model", str(folder), "--device", "cpu", "--output", str(store), *options]
        assert cli.main(command) == 1
        said = capsys.readouterr().err
        assert words in said
        assert len(said.splitlines()) == 1
    assert not list(store.glob("*"))
