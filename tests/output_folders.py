"""Small random checkpoints of models whose answer is more than a vector or a label: SPLADE, ColBERT, BGE-M3, NLI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.checkpoints import make_checkpoint
from tests.sentence_folders import HIDDEN, IDENTITY, dense, edit, modules, write

NLI = ("contradiction", "neutral", "entailment")
DIMENSIONS = 24
"""Of a token's vector."""


def make_nli(root: Path, family: str = "bert", labels: tuple[str, ...] = NLI, **sizes: Any) -> Path:
    """A classifier of inference, its labels in the order given."""
    make_checkpoint(root, family, "sequence_classification", num_labels=len(labels), **sizes)
    names = {str(row): name for row, name in enumerate(labels)}
    edit(root / "config.json", id2label=names, label2id={name: row for row, name in enumerate(labels)})
    return root


def make_splade(
    root: Path, family: str = "bert", pooling: str = "max", activation: str = "relu", *, module: str = "Transformer",
    **model: Any,
) -> Path:  # fmt: skip
    """A sparse encoder's folder, as saved by version 5 (``MLMTransformer``) or since; ``model``: settings beside the
    modules."""
    make_checkpoint(root, family, "fill_mask")
    _less_dense(root)
    old = module == "MLMTransformer"
    package = "sentence_transformers.sparse_encoder.models" if old else "sentence_transformers.base.modules.transformer"
    kinds = [f"{package}.{module}", "sentence_transformers.sparse_encoder.models.SpladePooling"]
    rows = [{"idx": i, "name": str(i), "path": ("", "1_SpladePooling")[i], "type": kinds[i]} for i in range(2)]
    write(root / "modules.json", rows)
    write(root / "1_SpladePooling" / "config.json", {"pooling_strategy": pooling, "activation_function": activation})
    if not old:
        write(root / "sentence_bert_config.json", {"transformer_task": "fill-mask"})
    write(root / "config_sentence_transformers.json", {"model_type": "SparseEncoder", **model})
    return root


def _less_dense(root: Path) -> None:
    """A random decoder's logits are positive for half the vocabulary; a bias makes weights as rare as they are."""
    from safetensors.torch import load_file

    state = load_file(root / "model.safetensors")
    for name in state:
        if name.endswith(("predictions.bias", "lm_head.bias", "decoder.bias")):
            state[name] = state[name] - 2.0 * state[name].std() - 3.0
    save_file(state, root / "model.safetensors", {"format": "pt"})


def make_colbert(root: Path, family: str = "bert", **settings: Any) -> Path:
    """A multi-vector encoder as sentence-transformers saves it; ``settings``: of its Transformer module."""
    make_checkpoint(root, family, "embedding")
    base = "sentence_transformers.base.modules"
    kinds = [
        (f"{base}.transformer.Transformer", ""),
        (f"{base}.dense.Dense", "1_Dense"),
        ("sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask", "2_MultiVectorMask"),
        (f"{base}.normalize.Normalize", "3_Normalize"),
    ]
    write(root / "modules.json", [{"idx": i, "name": str(i), "path": p, "type": t} for i, (t, p) in enumerate(kinds)])
    names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    dense(root / "1_Dense", HIDDEN, DIMENSIONS, IDENTITY, bias=False, **names)
    write(root / "2_MultiVectorMask" / "config.json", {"skiplist_words": list(".,!?")})
    write(root / "3_Normalize" / "config.json", names)
    write(root / "sentence_bert_config.json", settings)
    prompts = {"query": "where is ", "document": "the "}
    write(root / "config_sentence_transformers.json", {"model_type": "MultiVectorEncoder", "prompts": prompts})
    return root


def make_pylate(root: Path, **settings: Any) -> Path:
    """A ColBERT as PyLate saves it: two modules, one of its own class, and everything else beside them."""
    make_checkpoint(root, "bert", "embedding")
    kinds = [("sentence_transformers.models.Transformer", ""), ("pylate.models.Dense.Dense", "1_Dense")]
    write(root / "modules.json", [{"idx": i, "name": str(i), "path": p, "type": t} for i, (t, p) in enumerate(kinds)])
    dense(root / "1_Dense", HIDDEN, DIMENSIONS, IDENTITY, bias=False)
    stated = {
        "model_type": "ColBERT", "query_prefix": "[unused0] ", "document_prefix": "[unused1] ", "query_length": 16,
        "document_length": 40, "attend_to_expansion_tokens": True, "skiplist_words": list(".,!?"), **settings,
    }  # fmt: skip
    write(root / "config_sentence_transformers.json", stated)
    return root


def make_stanford(root: Path) -> Path:
    """A ColBERT as Stanford's library saves it: the projection among the encoder's weights."""
    from safetensors.torch import load_file

    make_checkpoint(root, "bert", "embedding")
    state = {f"bert.{name}": weight for name, weight in load_file(root / "model.safetensors").items()}
    state["linear.weight"] = torch.randn(DIMENSIONS, HIDDEN, generator=torch.Generator().manual_seed(3)) / 8
    save_file(state, root / "model.safetensors", {"format": "pt"})
    edit(root / "config.json", architectures=["HF_ColBERT"])
    facts = {"query_maxlen": 20, "doc_maxlen": 40, "mask_punctuation": True, "attend_to_mask_tokens": True}
    write(root / "artifact.metadata", facts)
    return root


def make_m3(root: Path, family: str = "xlm-roberta", **sizes: Any) -> Path:
    """BGE-M3's layout: an embedding model, and two layers beside it."""
    make_checkpoint(root, family, "embedding", **sizes)
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    write(root / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": True})
    generator = torch.Generator().manual_seed(11)
    for name, outputs in (("sparse_linear.pt", 1), ("colbert_linear.pt", DIMENSIONS)):
        weight = torch.randn(outputs, HIDDEN, generator=generator) / HIDDEN**0.5
        torch.save({"weight": weight, "bias": torch.randn(outputs, generator=generator) / 8}, root / name)
    return root


def described(root: Path) -> Any:
    """modules.json."""
    return json.loads((root / "modules.json").read_text())
