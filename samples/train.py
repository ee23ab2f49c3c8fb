"""Train a sample's adapter: LoRA on every linear layer of the encoder, and the task's head.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.optim import AdamW
from tqdm import tqdm
from transformers import PreTrainedModel

from samples.base import BASE_NAME, load_tokenizer
from samples.recipe import Batch, Recipe, Sample

ADAPTERS = Path(__file__).resolve().parent / "adapters"
_ENCODER_LINEARS = r".*encoder\.layer\..*\.(query|key|value|dense)"
# On a CPU drawing the random numbers of attention dropout takes longer than the attention itself, and the plain
# attention's backward pass is faster than the fused one's. Dropout on hidden states stays.
_FAST = {"attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}


def train(sample: Sample, threads: int = 2) -> Path:
    """Train on the CPU, seeded, and write the adapter to ``samples/adapters/NAME``; returns that folder."""
    torch.set_num_threads(threads)
    torch.manual_seed(sample.recipe.seed)
    model = adapted(sample.new_model(**_FAST), sample)
    fit(model, sample)
    return save(model, ADAPTERS / sample.name)


def adapted(model: PreTrainedModel, sample: Sample) -> PeftModel:
    """``model`` with trainable adapters and head, everything else frozen."""
    recipe = sample.recipe
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=_ENCODER_LINEARS,
        modules_to_save=list(sample.head),
    )
    return get_peft_model(model, config)


def fit(model: PeftModel, sample: Sample) -> None:
    """Minimise the model's own loss over the sample's batches: AdamW, linear warm-up, linear decay."""
    recipe = sample.recipe
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    model.train()
    for done, batch in _shares(sample, recipe):
        factor = min(done / recipe.warmup, (1 - done) / (1 - recipe.warmup))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor
        # bfloat16 products take about two thirds of the time and leave the weights in float32.
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _shares(sample: Sample, recipe: Recipe) -> Iterator[tuple[float, Batch]]:
    """All batches of all epochs, each with the share of the training done at its middle (epochs differ in steps)."""
    tokenizer, rng = load_tokenizer(), random.Random(recipe.seed)
    for epoch in range(recipe.epochs):
        batches = list(sample.epoch(tokenizer, rng, epoch / recipe.epochs))
        for index, batch in enumerate(tqdm(batches, desc=f"{sample.name} {epoch + 1}/{recipe.epochs}")):
            yield (epoch + (index + 0.5) / len(batches)) / recipe.epochs, batch


def save(model: PeftModel, folder: Path) -> Path:
    """Write the adapter, its base by package name rather than by this machine's path; returns ``folder``."""
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.save_pretrained(str(folder), save_embedding_layers=False)  # Embeddings are frozen; "auto" would ask the hub.
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder
