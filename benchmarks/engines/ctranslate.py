"""CTranslate2's encoder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.engines.base import Engine, register
from benchmarks.models import Source
from benchmarks.workloads import Batch

_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}


@register
class CTranslate2(Engine):
    """One encoder; it removes padding itself. int8 weights with activations quantised per row."""

    name = "ctranslate2"
    types = ("fp32", "int8")
    packages = ("ctranslate2",)
    looped = True

    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None:
        import ctranslate2

        with tempfile.TemporaryDirectory() as folder:
            path = _converted(source, Path(folder))
            self.encoder = ctranslate2.Encoder(
                str(path), device=device, compute_type=_TYPES[data_type], intra_threads=threads, inter_threads=1
            )

    def bind(self, batch: Batch) -> Callable[[], Any]:
        """Run on padded ids with their lengths, both as CTranslate2 takes them without conversion."""
        import ctranslate2

        ids = ctranslate2.StorageView.from_array(batch.ids.int().numpy())
        lengths = ctranslate2.StorageView.from_array(np.array(batch.workload.lengths, dtype=np.int32))
        return lambda: self.encoder.forward_batch(ids, lengths)

    def valid(self, output: Any, batch: Batch) -> Tensor:
        """See the base class."""
        return super().valid(np.array(output.last_hidden_state), batch)


def _converted(source: Source, folder: Path) -> Path:
    """Through a checkpoint's folder, as its converter wants; the vocabulary's words play no part in time."""
    import ctranslate2
    import transformers

    checkpoint = folder / "checkpoint"
    source.model.save_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    # transformers 5 no longer writes this key; the converter asserts it.
    (checkpoint / "config.json").write_text(json.dumps({**config, "position_embedding_type": "absolute"}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{index}" for index in range(source.config.vocab_size - len(words))]
    (checkpoint / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(checkpoint / "vocab.txt")).save_pretrained(checkpoint)
    with torch.no_grad():
        converter = ctranslate2.converters.TransformersConverter(str(checkpoint))
        return Path(converter.convert(str(folder / "converted")))
