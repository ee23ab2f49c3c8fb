"""Merge base and adapter into an ordinary Hugging Face checkpoint folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from samples.base import SamplesError, base_folder
from samples.recipe import Sample
from samples.train import ADAPTERS

BUILD = Path(__file__).resolve().parent.parent / "build" / "samples"


def merged(sample: Sample) -> PreTrainedModel:
    """The base model with the committed adapter and head folded in, float32, in evaluation mode."""
    folder = ADAPTERS / sample.name
    if not (folder / "adapter_model.safetensors").exists():
        raise SamplesError(f"no adapter for {sample.name}; run: python -m samples train {sample.name}")
    return PeftModel.from_pretrained(sample.new_model(), str(folder)).merge_and_unload().eval()


def build(sample: Sample, target: Path | None = None) -> Path:
    """Write the checkpoint folder (default ``build/samples/NAME``) and return it; the same bytes at every build."""
    target = target or BUILD / sample.name
    with whole(target) as partial:
        merged(sample).save_pretrained(partial)
        write_tokenizer(partial)
    return target


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """An empty folder that takes ``target``'s place at the end of the block, unless that ends by an error: so a
    half-written folder is never taken for a checkpoint."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        partial = Path(scratch) / target.name
        partial.mkdir()
        yield partial
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)


def write_tokenizer(folder: Path) -> None:
    """The base's tokenizer files, less the fixed padding and truncation its tokenizer.json was saved with."""
    base = base_folder()
    for name in ("vocab.txt", "special_tokens_map.json"):
        shutil.copyfile(base / name, folder / name)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("name_or_path", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
