"""Checkpoints that are quantised already: each format is read, its scales are in the archive, and the gate passes it.

The files are written as the packages write them: their tensors' names and shapes were read off small models that
compressed-tensors 0.20, torchao 0.18 and ModelOpt 0.47 made; pytorch-quantization's are those of its documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from builder.checkpoint import Checkpoint, load
from builder.errors import BuildError
from builder.quantisation.eight_bits import judge, quantised_model
from handler.config import SetupConfig
from handler.runtime import TracedModel
from tests.checkpoints import make_checkpoint
from tests.kernels.test_quantised import Arena

pytestmark = pytest.mark.usefixtures("cpu_library")

State = dict[str, Tensor]
QUERY, OUTPUT = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"
AMAX = 6.0


def _linears(state: State) -> list[str]:
    names = [name.removesuffix(".weight") for name, w in state.items() if w.dim() == 2 and ".layer." in name]
    assert len(names) == 12
    return names


def _amax(state: State, input_: str, weight: str) -> State:
    for module in _linears(state):
        state[f"{module}.{weight}._amax"] = state[f"{module}.weight"].abs().amax(1, keepdim=True)
        state[f"{module}.{input_}._amax"] = torch.tensor(AMAX)
    return state


def pytorch_quantization(state: State) -> State:
    """With FasterTransformer's quantisers of attention's products, which have 16 bits here."""
    state["bert.encoder.layer.0.attention.self.matmul_q_input_quantizer._amax"] = torch.tensor(3.0)
    return _amax(state, "_input_quantizer", "_weight_quantizer")


def modelopt(state: State) -> State:
    """ModelOpt's own state, with SmoothQuant's factors at one module."""
    state = _amax(state, "input_quantizer", "weight_quantizer")
    factors = torch.linspace(0.5, 2, state[f"{OUTPUT}.weight"].shape[1])
    state[f"{OUTPUT}.input_quantizer._pre_quant_scale"] = factors
    state[f"{OUTPUT}.weight"] = state[f"{OUTPUT}.weight"] / factors
    state[f"{OUTPUT}.weight_quantizer._amax"] = state[f"{OUTPUT}.weight"].abs().amax(1, keepdim=True)
    return state


def _numbers(state: State, dtype: torch.dtype, whole: bool, rename: Callable[[str], str], static: bool) -> State:
    largest = 127 if dtype is torch.int8 else 448
    for module in _linears(state):
        weight = state.pop(f"{module}.weight")
        scales = (weight.abs().max()[None] if whole else weight.abs().amax(1, keepdim=True)) / largest
        spread = (weight / scales).clamp(-largest, largest)
        state[f"{module}.{rename('weight')}"] = (spread.round() if dtype is torch.int8 else spread).to(dtype)
        state[f"{module}.{rename('weight_scale')}"] = scales.reshape(()) if whole else scales
        if static:
            state[f"{module}.input_scale"] = torch.tensor(AMAX / largest)
    return state


def _same(name: str) -> str:
    return name


def _torchao_name(name: str) -> str:
    return "_weight_qdata" if name == "weight" else f"_{name}"


FORMATS: dict[str, tuple[str, Callable[[State], State], dict[str, str] | None]] = {
    "pytorch-quantization": ("int8", pytorch_quantization, None),
    "modelopt": ("int8", modelopt, None),
    "modelopt as fp8": ("fp8", modelopt, None),
    "modelopt export": (
        "fp8",
        lambda s: _numbers(s, torch.float8_e4m3fn, True, _same, True),
        {"quant_method": "modelopt"},
    ),
    "compressed-tensors int": (
        "int8",
        lambda s: _numbers(s, torch.int8, False, _same, False),
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
    ),
    "compressed-tensors int, static": (
        "int8",
        lambda s: _numbers(s, torch.int8, False, _same, True),
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
    ),
    "compressed-tensors float": (
        "fp8",
        lambda s: _numbers(s, torch.float8_e4m3fn, False, _same, False),
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ),
    "torchao": ("int8", lambda s: _numbers(s, torch.int8, False, _torchao_name, False), None),
}
"""Scheme, what is made of the tensors, ``quantization_config``."""


def _written(folder: Path, change: Callable[[State], State], config: dict[str, str] | None) -> Path:
    """A quantised checkpoint with weights of a trained one's size: larger ones turn vectors by much in 8 bits."""
    make_checkpoint(folder, "bert", "sequence_classification")
    file = folder / "model.safetensors"
    state = change({k: v / 2 if v.dim() == 2 else v for k, v in load_file(file).items()})
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file, {"format": "pt"})
    if config is not None:
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stated, "quantization_config": config}))
    return folder


def _checkpoint(folder: Path) -> Checkpoint:
    return load(SetupConfig(model_name=str(folder)))


@pytest.mark.parametrize("name", FORMATS)
def test_its_scales_are_in_the_archive_and_the_gate_passes(tmp_path: Path, name: str) -> None:
    scheme, change, config = FORMATS[name]
    checkpoint = _checkpoint(_written(tmp_path, change, config))
    model, facts = quantised_model(checkpoint, None, None, scheme)
    assert facts["scales"] == "the checkpoint's"
    assert facts["kept"] == []
    arena = Arena(model.encoder.matrices)
    weight = checkpoint.load_model().get_submodule(QUERY).weight.detach()
    rounding = weight.abs().amax() * (2**-4 if scheme == "fp8" else 1 / 127)
    assert (arena.weight(0)[: len(weight)] - weight).abs().max() <= rounding
    steps = [size for size, _ in arena.steps]
    static = "amax" in name or "quantization" in name or "modelopt" in name or "static" in name
    expected = AMAX / (127 if scheme == "int8" else 448) if static else 0.0
    assert steps == pytest.approx([expected] * len(steps)), "the checkpoint's own steps, not measured ones"
    if change is modelopt:
        assert arena.factors(7) == pytest.approx(torch.linspace(0.5, 2, len(arena.factors(7))))
    verdict = judge(checkpoint, TracedModel(model, torch.device("cpu")), None, None, scheme, facts["kept"])
    assert verdict.passed, verdict.line()
    assert verdict.token_cosine < 1 - 1e-6, "8 bits that change nothing are no 8 bits"


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_numbers_of_one_type_are_no_others(tmp_path: Path, scheme: str) -> None:
    _, change, config = FORMATS["compressed-tensors float"]
    checkpoint = _checkpoint(_written(tmp_path, change, config))
    if scheme == "none":  # served in floating point as what its numbers stand for
        assert torch.isfinite(checkpoint.load_model().get_submodule(OUTPUT).weight).all()
    else:
        with pytest.raises(BuildError, match="quantised as fp8; build it with --scheme fp8"):
            quantised_model(checkpoint, None, None, scheme)


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (None, {"quant_method": "gptq"}, "quantised by gptq, which is not read"),
        (
            None,
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "format 'pack-quantized' is not read",
        ),
        ({"weight_scale": torch.ones(64, 4)}, None, "weight_scale of shape"),
        ({"weight_zero_point": torch.full((64, 1), 3)}, None, "zero_point that is not zero"),
        ({"weight_packed": torch.ones(64, 8, dtype=torch.int32)}, None, "weight_packed"),
        ({"input_scale": torch.ones(64)}, None, "64 numbers as its input_scale"),
        ({"input_scale": torch.tensor(float("nan"))}, None, "nan as its input_scale"),
    ],
)
def test_what_the_kernels_do_not_do_is_refused_by_name(
    tmp_path: Path, change: State | None, config: dict[str, str] | None, words: str
) -> None:
    def changed(state: State) -> State:
        state = _numbers(state, torch.int8, False, _same, False)
        return {**state, **{f"{QUERY}.{key}": value for key, value in (change or {}).items()}}

    with pytest.raises(BuildError, match=words) as raised:
        _checkpoint(_written(tmp_path, changed, config)).load_model()
    assert len(str(raised.value).splitlines()) == 1


def test_what_its_scales_cost_too_much_stays_in_16_bits(tmp_path: Path) -> None:
    """As in any other checkpoint; the rest has its scales."""

    def coarse(state: State) -> State:
        state = _numbers(state, torch.int8, False, _same, False)
        name = f"{OUTPUT}.weight"
        largest = state[name].float().abs().amax(1, keepdim=True)
        state[name] = (state[name].float() / largest * 3).round().to(torch.int8)  # seven numbers for all that it held
        state[f"{OUTPUT}.weight_scale"] = state[f"{OUTPUT}.weight_scale"] * largest / 3
        state[f"{OUTPUT}.input_scale"] = torch.tensor(3.0)
        return state

    config = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    checkpoint = _checkpoint(_written(tmp_path, coarse, config))
    model, facts = quantised_model(checkpoint, None, None, "int8")
    assert facts["kept"] == ["1.output"]
    assert facts["scales"] == "the checkpoint's"
    arena = Arena(model.encoder.matrices)
    assert [entry[0] for entry in arena.entries] == [3] * 7 + [1]
    weight = checkpoint.load_model().get_submodule(OUTPUT).weight.detach()
    assert torch.equal(arena.weight(7), weight.bfloat16().float())
