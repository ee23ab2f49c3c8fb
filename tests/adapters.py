"""LoRA adapters over a small checkpoint, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification


def make_adapter(base: Path, target: Path, *, labels: int = 4, seed: int = 3, names: object = None) -> Any:
    """Write a LoRA adapter with a head of its own, as PEFT saves it; returns the merged model."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    settings = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(names or base)
    adapted.save_pretrained(target)
    return adapted.merge_and_unload().eval()
