"""Quantisation-aware training of a sample: its fine-tuning goes on while the encoder computes in rounded integers.

By torchao: before each product of the encoder, weights are rounded to int8 with a scale for each output and activations
with a scale and a zero for each token, as the kernels round them; gradients pass the rounding as if it were not there
(Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013). What is written is torchao's
own safetensors layout, weights in int8 and their scales, which ``python -m builder archive --scheme int8`` reads.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import AdamW
from tqdm import tqdm
from transformers import PreTrainedModel

from samples.base import SamplesError, load_tokenizer
from samples.build import BUILD, merged, whole, write_tokenizer
from samples.recipe import Batch, Sample

TORCHAO = "torchao==0.18.0"
LEARNING_RATE = 2e-5
"""Of a model that is trained already."""
STEPS = 82
"""Two epochs of the tickets."""


def quantise(
    sample: Sample, target: Path | None = None, steps: int = STEPS
) -> tuple[Path, dict[str, dict[str, float]]]:
    """Train, convert and write the folder (default ``build/samples/NAME-int8``).

    Returns it, and the dev figures, percentages, in fp32, rounded without training, and rounded after it. Raises
    SamplesError where torchao is not installed.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
        from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
    except ImportError as error:
        raise SamplesError(f"quantisation-aware training needs torchao; run: pip install {TORCHAO}") from error
    torch.manual_seed(sample.recipe.seed)
    model, tokenizer = merged(sample), load_tokenizer()
    figures = {"fp32": sample.evaluate(model, tokenizer)}
    rounding = QATConfig(
        activation_config=IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False),
        weight_config=IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True),
        step="prepare",
    )
    quantize_(model, rounding, of_encoder)
    figures["rounded"] = sample.evaluate(model, tokenizer)
    fit(model, sample, steps)
    figures["rounded, trained"] = sample.evaluate(model, tokenizer)
    quantize_(model, QATConfig(step="convert"), of_encoder)
    quantize_(model, Int8DynamicActivationInt8WeightConfig(), of_encoder)
    return save(model, target or BUILD / f"{sample.name}-int8"), figures


def of_encoder(module: nn.Module, name: str) -> bool:
    """Whether torchao is to round this module's products: the encoder's, not the head's."""
    return isinstance(module, nn.Linear) and "encoder.layer." in name


def fit(model: PreTrainedModel, sample: Sample, steps: int) -> None:
    """Minimise the model's own loss: AdamW, linear decay, embeddings frozen."""
    model.requires_grad_(True)  # merging an adapter has frozen all of it
    model.base_model.embeddings.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(parameters, lr=LEARNING_RATE, weight_decay=sample.recipe.weight_decay)
    model.train()
    for done, batch in enumerate(tqdm(islice(_batches(sample), steps), total=steps, desc=f"{sample.name} int8")):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - done / steps)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _batches(sample: Sample) -> Iterator[Batch]:
    tokenizer, rng = load_tokenizer(), random.Random(sample.recipe.seed)
    while True:
        yield from sample.epoch(tokenizer, rng, 0.0)


def save(model: PreTrainedModel, target: Path) -> Path:
    """Write a checkpoint folder whose quantised weights are as torchao lays them out; renamed when it is whole."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    tensors, metadata = flatten_tensor_state_dict(model.state_dict())
    with whole(target) as partial:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, partial / "model.safetensors", metadata
        )
        model.config.architectures = [type(model).__name__]  # which the model's own way of saving would say
        model.config.save_pretrained(partial)
        write_tokenizer(partial)
    return target


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures, a line for each state."""
    return "\n".join(
        f"{state}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        for state, found in figures.items()
    )
