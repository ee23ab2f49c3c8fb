"""What is served and asked: a checkpoint's folder, or a classifier of a published size; texts of stated lengths."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch

from benchmarks.models import SIZES
from benchmarks.workloads import DISTRIBUTIONS

MIXES = ("data", "uniform", "squad")
"""The texts as they are, or cut and joined to lengths drawn from one of :data:`benchmarks.workloads.DISTRIBUTIONS`."""
TEXTS = 512
_LABELS = ("no", "yes")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def checkpoint(name: str, tokenizer: Path, folder: Path) -> Path:
    """``name`` itself where it is a folder, else a classifier of that size with random weights, made in ``folder``.

    ``tokenizer``: a BERT checkpoint's folder to take the tokenizer from. Random weights are right for time and
    say nothing of accuracy. Raises ValueError where ``name`` is neither.
    """
    if name not in SIZES:
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"no model in {name}; python -m samples build makes the sample, sizes: {', '.join(SIZES)}")
        return Path(name).resolve()
    import transformers

    target = folder / f"random-{name}"
    target.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    # Labels with names of their own are written down, and by them infinity tells a classifier from a reranker.
    config = transformers.BertConfig(**SIZES[name], id2label=dict(enumerate(_LABELS)))
    transformers.BertForSequenceClassification(config).save_pretrained(target)
    for file in _TOKENIZER_FILES:
        if (tokenizer / file).is_file():
            shutil.copyfile(tokenizer / file, target / file)
    return target.resolve()


def texts_of(mix: str, texts: Sequence[str], tokenizer_file: Path, longest: int) -> list[str]:
    """Texts for a mix; the same every time. ``longest``: in tokens, the two special ones included."""
    if mix == "data":
        return list(texts)
    lengths = DISTRIBUTIONS[mix](TEXTS, longest)
    generator = random.Random(0)
    generator.shuffle(lengths)
    return texts_of_lengths(lengths, texts, tokenizer_file, generator)


def texts_of_lengths(
    lengths: Sequence[int], texts: Sequence[str], tokenizer_file: Path, generator: random.Random
) -> list[str]:
    """Texts in random order, cut and joined to lengths in tokens, the two special ones included."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    order = list(texts)
    generator.shuffle(order)
    endless = itertools.cycle(order)
    return [_joined(tokenizer, endless, length - 2) for length in lengths]


def _joined(tokenizer: tokenizers.Tokenizer, texts: itertools.cycle[str], tokens: int) -> str:
    """Whole texts one after the other, the last one cut so that there are ``tokens`` tokens."""
    text = next(texts)
    while len(encoding := tokenizer.encode(text, add_special_tokens=False)) < tokens:
        text = f"{text} {next(texts)}"
    return text[: encoding.offsets[max(1, tokens) - 1][1]]


def mean_tokens(texts: Sequence[str], tokenizer_file: Path) -> float:
    """Tokens of a text on average, special ones included."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return float(np.mean([len(encoding) for encoding in tokenizer.encode_batch(list(texts))]))
