"""A text classifier on LitServe as its documentation writes one: transformers, padded batches.

``python -m benchmarks.serving.litserve_app MODEL PORT THREADS``.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve
import torch
import transformers


class Classifier(litserve.LitAPI):
    """Answers ``{"text": ...}`` with the best label and its score."""

    def __init__(self, model: str, threads: int) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.002)
        self.folder = model
        self.threads = threads

    def setup(self, device: str) -> None:
        """Load the model, once in each worker."""
        torch.set_num_threads(self.threads)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder).eval()

    def decode_request(self, request: dict[str, str]) -> str:
        """The text."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """Texts are joined as they are."""
        return inputs

    def predict(self, x: list[str]) -> list[tuple[int, float]]:
        """One forward pass, padded to the longest."""
        inputs = self.tokenizer(x, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            scores, labels = self.model(**inputs).logits.softmax(-1).max(-1)
        return list(zip(labels.tolist(), scores.tolist(), strict=True))

    def unbatch(self, output: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """One entry for each text."""
        return output

    def encode_response(self, output: tuple[int, float]) -> dict[str, Any]:
        """The label's name and its score."""
        return {"label": self.model.config.id2label[output[0]], "score": output[1]}


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(sys.argv[1], int(sys.argv[3])), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
