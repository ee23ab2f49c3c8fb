"""One checkout's own time for a request, in this process: what ``handler_overhead`` starts for each checkout in turn.

    PYTHONPATH=CHECKOUT python benchmarks/overhead_child.py TOKENIZER BATCH TOKENS REPETITIONS

A worker's loop without its model: frames as TorchServe's front end writes them come through a socket, TorchServe's own
code and the checkout's adapter read and answer them, and the model answers at once. Prints one line of JSON: processor
microseconds a request of the whole loop and of the adapter's ``handle`` alone, and the mean of its stages.
"""

from __future__ import annotations

import json
import random
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Iterator
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import ts.service
from ts.protocol import otf_message_handler

from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.predictor import Predictor
from handler.service import EncoderService
from handler.tokenizer import Tokenizer

retrieve_msg = otf_message_handler.retrieve_msg  # where a worker's loop finds it, and an adapter may put its own
HEADERS = {
    "Host": "127.0.0.1:8080", "Authorization": "Bearer abcdefgh", "Accept": "*/*", "Content-Length": "240",
    "explain": "False", "url_path": "",
}  # fmt: skip


class InstantModel:
    """Logits [B, 2] that cost nothing. Like an archive's model it takes packed ids; a checkout that knows none pads."""

    device = torch.device("cpu")
    takes_packed = True

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """See handler.packing.Model."""
        rows = len(ids) if ids.ndim == 2 else len(mask) - 1
        return (np.zeros((rows, 2), dtype=np.float32),)


def batches(tokenizer: Tokenizer, rows: int, tokens: int) -> Iterator[list[bytes]]:
    """Batches of JSON bodies, every text new and of exactly ``tokens`` tokens.

    Words follow Zipf's law in the vocabulary's order, which for BERT's is that of frequency.
    """
    generator = random.Random(0)
    ranked = sorted(tokenizer.backend.get_vocab().items(), key=itemgetter(1))
    words = [word for word, _ in ranked if word.isascii() and word.isalpha() and len(word) > 1]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    while True:
        texts = (" ".join(generator.choices(words, cum_weights=weights, k=tokens - 2)) for _ in range(rows))
        yield [json.dumps({"text": text}).encode() for text in texts]


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


def frame(bodies: list[bytes], content_type: str = "application/json") -> bytes:
    """A batch as the front end writes it (ts/protocol/otf_message_handler.py reads it)."""

    def field(data: bytes) -> bytes:
        return struct.pack("!i", len(data)) + data

    end = struct.pack("!i", -1)
    parts = [b"I"]
    for number, body in enumerate(bodies):
        parts.append(field(f"0f8fad5b-d9cb-469f-a165-{number:012d}".encode()))
        parts += [field(name.encode()) + field(value.encode()) for name, value in HEADERS.items()]
        parts += [end, field(b"body") + field(content_type.encode()) + field(body), end]
    return b"".join([*parts, end])


class Worker:
    """A worker's loop around an adapter, as ts/model_service_worker.py runs it."""

    def __init__(self, predictor: Predictor) -> None:
        self.adapter = EncoderService(predictor)
        take_over = getattr(sys.modules["handler.service"], "take_frames_over", None)
        if take_over is not None:
            take_over()
        figures = SimpleNamespace(add_metric=lambda *_, **__: None, add_time=lambda *_, **__: None)
        self.inside, self.outside = socket.socketpair()
        for end in (self.inside, self.outside):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        manifest = {"model": {"modelName": "overhead", "modelVersion": "1.0"}}
        self.handled = 0.0
        self.service = ts.service.Service("overhead", "", manifest, self._handle, None, 64, metrics_cache=figures)
        self.service.set_cl_socket(self.inside)

    def _handle(self, rows: Any, context: Any) -> Any:
        start = time.thread_time()
        try:
            return self.adapter.handle(rows, context)
        finally:
            self.handled = time.thread_time() - start

    def turn(self, message: bytes) -> tuple[float, float]:
        """One batch; processor seconds of the loop, and of ``handle`` within it."""
        sender = threading.Thread(target=self.outside.sendall, args=(message,))
        sender.start()
        sender.join()
        start = time.thread_time()
        _, batch = sys.modules["__main__"].retrieve_msg(self.inside)  # type: ignore[attr-defined]
        self.inside.sendall(self.service.predict(batch))
        used = time.thread_time() - start
        answer = self.outside.recv(1 << 20)
        assert b'"label"' in answer, answer[:200]
        return used, self.handled


def measure(worker: Worker, frames: list[bytes], rows: int) -> dict[str, Any]:
    """Median processor microseconds a request, after as many batches that do not count: a worker that has served for
    a while has seen most words."""
    metrics = worker.adapter._predictor.metrics  # type: ignore[union-attr]
    half = len(frames) // 2
    for message in frames[:half]:
        worker.turn(message)
    metrics.flush(lambda _: None, force=True)
    turns = [worker.turn(message) for message in frames[half:]]
    samples: list[Any] = []
    metrics.flush(samples.append, force=True)
    stages = {s.name.removesuffix("_time"): 1e3 * s.value / rows for s in samples if s.name.endswith("_time")}
    loop, handled = (1e6 * statistics.median(column) / rows for column in zip(*turns, strict=True))
    return {"worker": round(loop, 2), "handler": round(handled, 2), "stages": stages}


def main() -> None:
    """Print the figures of the checkout on PYTHONPATH."""
    tokenizer, rows, tokens, repetitions = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    predictor = make_predictor(tokenizer)
    drawn = islice(batches(predictor.task.tokenizer, rows, tokens), 2 * repetitions)
    print(json.dumps(measure(Worker(predictor), [frame(bodies) for bodies in drawn], rows)))


if __name__ == "__main__":
    main()
