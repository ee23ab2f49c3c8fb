"""A text classifier on TorchServe as its base class invites one: transformers, every text padded to the maximum.

It goes into an archive as it is and imports nothing of this product. ``handler`` in its model-config.yaml holds
``max_length``, ``threads`` and ``data_type``, a name that torch knows.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before transformers: a worker has one core, its tokenizer too

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException


class PlainClassifier(BaseHandler):
    """Answers ``{"text": ...}`` with the best label and its score."""

    def initialize(self, context: Any) -> None:
        """Load the checkpoint that TorchServe has extracted."""
        settings = context.model_yaml_config["handler"]
        folder = context.system_properties["model_dir"]
        torch.set_num_threads(settings["threads"])
        self.max_length = settings["max_length"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        dtype = getattr(torch, settings["data_type"])
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False
        ).eval()
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> BatchEncoding:
        """One padded tensor for the batch. TorchServe has decoded JSON already."""
        bodies = [row.get("body") or row.get("data") for row in data]
        if not all(isinstance(body, dict) and isinstance(body.get("text"), str) for body in bodies):
            raise PredictionException("a request needs a text", 400)
        texts = [body["text"] for body in bodies]
        return self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )

    def inference(self, data: BatchEncoding) -> torch.Tensor:
        """Each label's probability."""
        with torch.inference_mode():
            return self.model(**data).logits.float().softmax(-1)

    def postprocess(self, data: torch.Tensor) -> list[dict[str, Any]]:
        """One answer for each request."""
        scores, labels = data.max(-1)
        names = [self.model.config.id2label[label] for label in labels.tolist()]
        return [{"label": name, "score": score} for name, score in zip(names, scores.tolist(), strict=True)]
