"""Small random folders of sentence-transformers' forms: old and new layouts, every module that is supported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.checkpoints import make_checkpoint

HIDDEN = 64
TANH, IDENTITY, GELU = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity", "torch.nn.GELU"
_LEGACY = {
    "cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken",
}  # fmt: skip


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    content = {**json.loads(path.read_text()), **changes}
    write(path, {key: value for key, value in content.items() if value is not None})


def modules(root: Path, *kinds_and_paths: tuple[str, str]) -> None:
    rows = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds_and_paths)
    ]
    write(root / "modules.json", rows)


def pooling(folder: Path, *modes: str, legacy: bool = True, **settings: Any) -> None:
    """A Pooling module's settings, in the form before and since version 5.4."""
    if legacy:
        named = {f"pooling_mode_{name}": mode in modes for mode, name in _LEGACY.items()}
        write(folder / "config.json", {"word_embedding_dimension": HIDDEN, **named, **settings})
    else:
        mode = modes[0] if len(modes) == 1 else list(modes)
        write(folder / "config.json", {"embedding_dimension": HIDDEN, "pooling_mode": mode, **settings})


def dense(folder: Path, inputs: int, outputs: int, activation: str, *, pickled: bool = False, **settings: Any) -> None:
    generator = torch.Generator().manual_seed(inputs + outputs)
    bias = settings.get("bias", True)
    weights = {"linear.weight": torch.randn(outputs, inputs, generator=generator) / inputs**0.5}
    weights |= {"linear.bias": torch.randn(outputs, generator=generator)} if bias else {}
    if settings.get("use_residual") and inputs != outputs:
        weights["residual.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    facts = {"in_features": inputs, "out_features": outputs, "bias": bias, "activation_function": activation}
    write(folder / "config.json", {**facts, **settings})
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")


def layer_norm(folder: Path, dimension: int) -> None:
    write(folder / "config.json", {"dimension": dimension})
    weights = {"norm.weight": torch.linspace(0.5, 1.5, dimension), "norm.bias": torch.linspace(-1, 1, dimension)}
    save_file(weights, folder / "model.safetensors")


def _usual(root: Path, base: Path) -> None:
    shutil.copytree(base, root)
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    pooling(root / "1_Pooling", "cls")


def _oldest(root: Path, base: Path) -> None:
    shutil.copytree(base, root / "0_Transformer")
    write(root / "0_Transformer" / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    modules(root, ("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"))
    pooling(root / "1_Pooling", "mean")


def _nested(root: Path, base: Path) -> None:
    shutil.copytree(base, root / "parts" / "encoder")
    modules(root, ("Transformer", "parts/encoder"), ("Pooling", "parts/pooling"), ("Normalize", "parts/norm"))
    pooling(root / "parts" / "pooling", "max", legacy=False)
    pooling(root / "1_Pooling", "cls")  # named by nothing


def _roots_of_lengths(root: Path, base: Path) -> None:
    shutil.copytree(base, root)
    modules(root, ("Transformer", ""), ("Pooling", "pooling"))
    pooling(root / "pooling", "mean_sqrt_len_tokens")


def _weighted(root: Path, base: Path) -> None:
    shutil.copytree(base, root)
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"))
    pooling(root / "1_Pooling", "weightedmean")
    write(root / "sentence_bert_config.json", {"max_seq_length": 16})


def _last(root: Path, base: Path) -> None:
    shutil.copytree(base, root)
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"))
    pooling(root / "1_Pooling", "lasttoken", legacy=False)


def _joined_and_dense(root: Path, base: Path) -> None:
    shutil.copytree(base, root)
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    pooling(root / "1_Pooling", "cls", "max", "mean")
    dense(root / "2_Dense", 3 * HIDDEN, 24, TANH)


def _chain(root: Path, base: Path) -> None:
    shutil.copytree(base, root)
    parts = ("Dense", "2_Dense"), ("Dropout", "3_Dropout"), ("Normalize", "4"), ("LayerNorm", "5"), ("Dense", "6")
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"), *parts, ("Normalize", "7_Normalize"))
    pooling(root / "1_Pooling", "mean")
    dense(root / "2_Dense", HIDDEN, 48, IDENTITY, pickled=True, bias=False)
    write(root / "3_Dropout" / "config.json", {"dropout": 0.5})
    layer_norm(root / "5", 48)
    dense(root / "6", 48, 32, GELU, use_residual=True)


def _prompts(root: Path, base: Path) -> None:
    _usual(root, base)
    pooling(root / "1_Pooling", "mean")
    prompts = {"query": "where is my ", "document": "the colour of ", "clustering": "How do I"}
    write(root / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "document"})


def _prompts_left_out(root: Path, base: Path) -> None:
    _prompts(root, base)
    pooling(root / "1_Pooling", "mean", "weightedmean", "max", "cls", include_prompt=False)


def _cut(root: Path, base: Path) -> None:
    _usual(root, base)
    write(root / "config_sentence_transformers.json", {"truncate_dim": 20, "similarity_fn_name": "dot"})


def _of_a_masked_lm(root: Path, base: Path) -> None:
    make_checkpoint(root, "bert", "fill_mask")
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"))
    pooling(root / "1_Pooling", "mean")


def _cased(root: Path, base: Path) -> None:
    """A tokenizer that keeps capitals, before which sentence-transformers makes them small."""
    _usual(root, base)
    write(root / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    edit(root / "tokenizer_config.json", do_lower_case=False)


def _saved(root: Path, base: Path) -> None:
    """As version 6 saves: the length stands with the tokenizer, paths of modules and classes are its own."""
    from sentence_transformers import SentenceTransformer

    plain = root.parent / f"{root.name}-plain"
    _joined_and_dense(plain, base)
    model = SentenceTransformer(str(plain), device="cpu", prompts={"query": "how do I "}, default_prompt_name="query")
    model.max_seq_length = 14
    model.save_pretrained(str(root))


FOLDERS: dict[str, Callable[[Path, Path], None]] = {
    "usual": _usual,
    "oldest layout": _oldest,
    "nested": _nested,
    "mean_sqrt_len": _roots_of_lengths,
    "weighted mean": _weighted,
    "last token": _last,
    "joined, Dense": _joined_and_dense,
    "chain of layers": _chain,
    "prompts": _prompts,
    "prompts left out": _prompts_left_out,
    "cut": _cut,
    "of a masked LM": _of_a_masked_lm,
    "lower-cased": _cased,
    "saved by version 6": _saved,
}


def make_folder(root: Path, name: str, family: str = "bert") -> Path:
    """The named folder over a random encoder of the family."""
    base = make_checkpoint(root.parent / f"{root.name}-base", family, "embedding")
    FOLDERS[name](root, base)
    return root


def make_cross_encoder(root: Path, labels: int = 1, **keys: Any) -> Path:
    """A random classifier of one label (or more); ``keys`` go into its config.json."""
    make_checkpoint(root, "bert", "sequence_classification", num_labels=labels)
    edit(root / "config.json", **keys)
    return root
