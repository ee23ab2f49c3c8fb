"""Checkpoints that are quantised already: what their files say, as weights and scales.

Read are pytorch-quantization's and ModelOpt's amax beside floating weights, and the 8-bit weights of ModelOpt's Hugging
Face export, of compressed-tensors (formats int-quantized and float-quantized) and of torchao's safetensors, with a
scale for the whole matrix or for each output. A step that a checkpoint gives its activations is used; where it gives
none, each token has its own. Everything else of such checkpoints is refused by name.

Sources: the packages' own documents and state dicts (NVIDIA pytorch-quantization 2.1, ModelOpt 0.3x, compressed-tensors
0.1x, torchao 0.1x).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from builder.errors import BuildError
from builder.quantisation.quantise import NUMBERS, Rounded, Step

METHODS = ("compressed-tensors", "modelopt", "torchao")
"""Of ``quantization_config.quant_method``: those that are read."""
_FORMATS = ("int-quantized", "float-quantized", "naive-quantized")
_TYPES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}
_INPUT, _WEIGHT = ("_input_quantizer", "input_quantizer"), ("_weight_quantizer", "weight_quantizer")
_SCALES = ("weight_scale", "input_scale", "weight_zero_point", "input_zero_point", "pre_quant_scale", "weight_shape")


@dataclass(frozen=True)
class Stored:
    """A module's weight as its checkpoint has quantised it.

    ``numbers`` [outputs, inputs] with ``scales`` [outputs], or the largest magnitude ``weight_most`` [outputs] of a
    floating weight; ``input_most`` the largest magnitude of an input, ``input_scale`` a step of inputs, neither where
    each token has its own; ``factors`` [inputs] that inputs are multiplied by before they are rounded.
    """

    numbers: Tensor | None = None
    scales: Tensor | None = None
    weight_most: Tensor | None = None
    input_most: float | None = None
    input_scale: float | None = None
    factors: Tensor | None = None

    @property
    def scheme(self) -> str | None:
        """int8 or fp8; None where the file says no more than how far values reach."""
        return None if self.numbers is None else _TYPES[self.numbers.dtype]

    def weight(self, stored: Tensor) -> Tensor:
        """The weight in fp32; ``stored`` is the file's."""
        weight = stored.float() if self.numbers is None else self.numbers.float() * _column(self.scales)
        return weight if self.factors is None else weight * self.factors

    def rounded(self, weight: Tensor, scheme: str) -> Rounded:
        """For :class:`builder.quantisation.quantise.Rounder`; ``weight`` is that of :meth:`weight`."""
        number = NUMBERS[scheme]
        factors = torch.ones(weight.shape[1]) if self.factors is None else self.factors
        step = self.input_scale
        if step is None and self.input_most is not None:
            step = self.input_most / number.largest
        steps = None if not step else Step(step, 128 if scheme == "int8" else 0)
        if self.numbers is not None:
            return Rounded(self.numbers, _column(self.scales).flatten().float(), factors, steps)
        assert self.weight_most is not None
        scales = (self.weight_most.flatten().float() / number.largest).expand(len(weight)).contiguous()
        numbers = number.rounded(weight / factors / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None])
        return Rounded(numbers.to(number.dtype), scales, factors, steps)


def _column(scales: Tensor | None) -> Tensor:
    assert scales is not None
    return scales.float().reshape(-1, 1)


def stacked(parts: list[Rounded]) -> Rounded:
    """Matrices that share their input, on top of each other: of their steps the widest."""
    steps = [part.step for part in parts if part.step is not None]
    step = max(steps, key=lambda one: one.size) if len(steps) == len(parts) else None
    if any(not torch.equal(part.factors, parts[0].factors) for part in parts):
        raise BuildError("query, key and value of a layer have different pre_quant_scales; quantise them as one")
    numbers = torch.cat([part.numbers.view(torch.uint8) for part in parts]).view(parts[0].numbers.dtype)
    return Rounded(numbers, torch.cat([part.scales for part in parts]), parts[0].factors, step)


def check_method(config: Mapping[str, Any], source: str) -> None:
    """Raises BuildError for the ``quantization_config`` of a config.json that is not read."""
    found = config.get("quantization_config")
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if method not in METHODS:
        raise BuildError(
            f"{source}: quantised by {method or 'an unnamed method'}, which is not read (read are "
            f"{', '.join(METHODS)}, and pytorch-quantization's _amax); give the checkpoint in floating point"
        )
    form = found.get("format")
    if method == "compressed-tensors" and form not in _FORMATS:
        raise BuildError(
            f"{source}: compressed-tensors in format {form!r} is not read (read are {', '.join(_FORMATS)}); give the "
            "checkpoint in floating point"
        )


def read_stored(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[int, Stored]]:
    """A file's tensors without what quantisation added, weights in fp32 where they were quantised, and what is known of
    each of these, by the weight's ``id``.

    Raises BuildError naming the first tensor that says something that the kernels cannot do.
    """
    weights: dict[str, Tensor] = {}
    said: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        module, key = _said(name)
        if key is None:
            weights[name] = value
        else:
            said.setdefault(module, {})[key] = value
    stored: dict[int, Stored] = {}
    for module, facts in said.items():
        name = f"{module}.weight"
        tensor: Tensor | None = facts.pop("numbers") if "numbers" in facts else weights.get(name)
        if tensor is None or tensor.dim() != 2:
            continue  # of attention's products and of tables, which have 16 bits here
        found = _stored(tensor, facts, module, source)
        if found is not None:
            weights[name] = found.weight(tensor)
            stored[id(weights[name])] = found
    return weights, stored


def _said(name: str) -> tuple[str, str | None]:
    """The module and what a tensor says of it; None: it is no word of quantisation."""
    module, _, last = name.rpartition(".")
    if last in ("_amax", "_pre_quant_scale", "_scale", "_zero_point"):
        module, _, quantiser = module.rpartition(".")
        if quantiser in _INPUT:
            return module, f"input{last}"
        return module, f"weight{last}" if quantiser in _WEIGHT else f"other.{quantiser}{last}"
    if last in _SCALES or last.startswith("weight_scale") or last in ("weight_packed", "weight_g_idx"):
        return module, last
    for suffix, key in (("_weight_qdata", "numbers"), ("_weight_scale", "weight_scale")):
        if last == suffix:
            return module, key
    if last.startswith("_weight_"):
        return module, last
    return name, None


def _stored(weight: Tensor, facts: dict[str, Tensor], module: str, source: str) -> Stored | None:
    def refuse(why: str) -> BuildError:
        return BuildError(f"{source}: {module} {why}, which the kernels do not run; give it in floating point")

    facts = {key: value for key, value in facts.items() if not key.startswith("other.")}
    for key in ("weight_packed", "weight_g_idx", "weight_scale_2", "weight_scale_inv"):
        if key in facts:
            raise refuse(f"has {key}: a type of fewer bits, or scales of blocks")
    for key in ("weight_zero_point", "input_zero_point", "_weight_zero_point"):
        if key in facts and bool((facts[key].float() != 0).any()):
            raise refuse(f"has a {key.strip('_')} that is not zero")
    outputs, inputs = weight.shape
    factors = facts.get("pre_quant_scale", facts.get("input_pre_quant_scale"))
    if factors is not None and factors.numel() != inputs:
        raise refuse(f"has a pre_quant_scale of {factors.numel()} numbers for {inputs} inputs")
    given = {"factors": None if factors is None else factors.flatten().float()}
    for key, field in (("input_amax", "input_most"), ("input_scale", "input_scale")):
        if key not in facts:
            continue
        if facts[key].numel() != 1:
            raise refuse(f"has {facts[key].numel()} numbers as its {key}: a scale for each input")
        value = float(facts[key])
        if not 0 < value < float("inf"):
            raise BuildError(f"{source}: {module} has {value:g} as its {key}; calibrate the checkpoint again")
        given[field] = value  # type: ignore[assignment]
    key = "weight_scale" if "weight_scale" in facts else "weight_amax"
    if weight.dtype in _TYPES:
        if key != "weight_scale":
            raise BuildError(f"{source}: {module}.weight is {weight.dtype} and has no weight_scale")
        scales = _for_outputs(facts[key], outputs, key, refuse)
        return Stored(numbers=weight, scales=scales, **given)  # type: ignore[arg-type]
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise refuse(f"has weights of type {str(weight.dtype).removeprefix('torch.')}")
    if key not in facts:
        return None  # no quantised weight: a quantiser that was switched off
    if key == "weight_scale":
        raise refuse("has a weight_scale beside a weight in floating point")
    most = _for_outputs(facts[key], outputs, key, refuse)
    return Stored(weight_most=most, **given)  # type: ignore[arg-type]


def _for_outputs(scales: Tensor, outputs: int, key: str, refuse: Any) -> Tensor:
    if scales.numel() not in (1, outputs):
        raise refuse(f"has a {key} of shape {list(scales.shape)}: scales of groups or blocks")
    flat = scales.flatten().float()
    if not bool((flat >= 0).all()) or not bool(flat.isfinite().all()):
        raise refuse(f"has a {key} that is negative or no number")
    return flat.expand(outputs).contiguous()
