"""A text classifier on LitServe as its documentation writes one: transformers, padded batches.

``python -m benchmarks.serving.litserve_app MODEL PORT WORKERS BATCH MAX_LENGTH TYPE``; TYPE as torch names it.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve
import torch
import transformers
from fastapi import HTTPException


class Classifier(litserve.LitAPI):
    """Answers ``{"text": ...}`` with the best label and its score."""

    def __init__(self, model: str, batch: int, max_length: int, data_type: str) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=0.001)
        self.folder = model
        self.max_length = max_length
        self.data_type = data_type

    def setup(self, device: str) -> None:
        """Load the model, once in each worker."""
        torch.set_num_threads(1)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        dtype = getattr(torch, self.data_type)
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
            self.folder, dtype=dtype, trust_remote_code=False
        ).eval()

    def decode_request(self, request: dict[str, str]) -> str:
        """The text."""
        if "text" not in request:
            raise HTTPException(400, "a request needs a text")
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """Texts are joined as they are."""
        return inputs

    def predict(self, x: list[str]) -> list[tuple[int, float]]:
        """One forward pass, padded to the longest."""
        inputs = self.tokenizer(x, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        with torch.inference_mode():
            scores, labels = self.model(**inputs).logits.float().softmax(-1).max(-1)
        return list(zip(labels.tolist(), scores.tolist(), strict=True))

    def unbatch(self, output: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """One entry for each text."""
        return output

    def encode_response(self, output: tuple[int, float]) -> dict[str, Any]:
        """The label's name and its score."""
        return {"label": self.model.config.id2label[output[0]], "score": output[1]}


if __name__ == "__main__":
    model, port, workers, batch, max_length, data_type = sys.argv[1:]
    server = litserve.LitServer(
        Classifier(model, int(batch), int(max_length), data_type),
        accelerator="cpu", workers_per_device=int(workers), fast_queue=True,
    )  # fmt: skip
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")
