"""What makes a small random checkpoint of the families beyond BERT's: configs of odd sizes, and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

Texts = Sequence[str]

CLASSES = {
    "ernie": "Ernie",
    "mpnet": "MPNet",
    "albert": "Albert",
    "deberta-v2": "DebertaV2",
    "modernbert": "ModernBert",
    "eurobert": "EuroBert",
    "nomic_bert": "NomicBert",
    "gte": "Gte",
    "jina_embeddings_v3": "JinaEmbeddingsV3",
    "roformer": "RoFormer",
    "esm": "Esm",
    "t5": "T5",
}
HEADS = dict.fromkeys(
    CLASSES, ("sequence_classification", "token_classification", "question_answering", "fill_mask", "embedding")
) | {
    "eurobert": ("sequence_classification", "token_classification", "fill_mask", "embedding"),
    "nomic_bert": ("sequence_classification", "token_classification", "fill_mask", "embedding"),
    "gte": ("sequence_classification", "token_classification", "fill_mask", "embedding"),
    "esm": ("sequence_classification", "token_classification", "fill_mask", "embedding"),
    "t5": ("token_classification", "embedding"),
}
"""The heads that transformers has for each."""
_WORDPIECE = ("ernie", "nomic_bert", "roformer")

SIZES: dict[str, dict[str, Any]] = {
    "ernie": {"use_task_id": True, "num_hidden_layers": 2},
    "mpnet": {"pad_token_id": 1, "max_position_embeddings": 300},
    "albert": {"embedding_size": 24, "num_hidden_layers": 4, "num_hidden_groups": 2, "type_vocab_size": 2},
    "deberta-v2": {
        "relative_attention": True, "position_buckets": 24, "max_position_embeddings": 160, "pos_att_type": "p2c|c2p",
        "position_biased_input": False, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0,
    },
    "modernbert": {"local_attention": 14, "num_hidden_layers": 4, "intermediate_size": 88, "classifier_bias": True},
    "eurobert": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 104},
    "nomic_bert": {"type_vocab_size": 2},
    "gte": {"type_vocab_size": 1, "rope_parameters": {"rope_type": "linear", "factor": 1.1, "rope_theta": 5000.0}},
    "jina_embeddings_v3": {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "roformer": {"embedding_size": 40},
    "esm": {
        "position_embedding_type": "rotary", "token_dropout": True, "emb_layer_norm_before": False,
        "layer_norm_eps": 1e-5,
    },
    "t5": {"feed_forward_proj": "gated-gelu", "d_kv": 24},
}  # fmt: skip
"""Beside what every family gets."""
_T5_NAMES = {
    "hidden_size": "d_model", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads",
    "intermediate_size": "d_ff",
}  # fmt: skip


def sizes(family: str, given: dict[str, Any], specials: dict[str, int]) -> dict[str, Any]:
    """A config's values; ``specials``: the tokenizer's ids by the config's names."""
    made = {**specials, **given}
    if family == "t5":
        made = {_T5_NAMES.get(key, key): value for key, value in made.items()}
        made.pop("max_position_embeddings", None)
    if family == "modernbert":
        made |= {"cls_token_id": specials.get("bos_token_id"), "sep_token_id": specials.get("eos_token_id")}
    return made


def special_ids(family: str) -> dict[str, int]:
    """By the config's names: every tokenizer here begins with pad, the two of a frame, unknown and mask."""
    if family in ("mpnet", "gte", "jina_embeddings_v3", "esm"):
        ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    elif family in _WORDPIECE:
        return {"pad_token_id": 0}
    else:
        ids = {"pad_token_id": 0, "eos_token_id": 1} if family == "t5" else {
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
    return ids | ({"mask_token_id": 4} if family in ("esm", "eurobert") else {})


def write_tokenizer(folder: Path, family: str, texts: Texts, unigram: Callable[..., Tokenizer]) -> int:
    """The family's kind of tokenizer; returns the size of its vocabulary."""
    if family == "esm":
        return _protein(folder)
    if family in ("modernbert", "eurobert"):
        tokenizer, names = _byte_bpe(texts)
    elif family in ("albert", "deberta-v2"):
        names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        tokenizer = unigram(names)
        tokenizer.post_processor = _frame("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", names)
    elif family == "t5":
        names = ["<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer = unigram(names)
        tokenizer.post_processor = _frame("$A </s>", "$A </s> $B </s>", names)
    else:
        names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer = unigram(names)
        tokenizer.post_processor = _frame("<s> $A </s>", "<s> $A </s> </s> $B </s>", names)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, family, names)
    return tokenizer.get_vocab_size()


def _write_config(folder: Path, family: str, names: Sequence[str]) -> None:
    def like(word: str) -> str | None:
        return next((name for name in names if word in name.lower()), None)

    roles = {"pad_token": like("pad"), "unk_token": like("unk"), "mask_token": like("mask")}
    start, end = like("cls") or like("<s>") or like("begin"), like("sep") or like("</s>") or like("end")
    roles |= {"cls_token": start, "bos_token": start, "sep_token": end, "eos_token": end}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **{key: name for key, name in roles.items() if name}}
    types = ["token_type_ids"] if family in ("albert", "deberta-v2") else []
    config["model_input_names"] = ["input_ids", *types, "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _frame(single: str, pair: str, names: Sequence[str]) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, place) for place, name in enumerate(names)]
    )


def _byte_bpe(texts: Texts) -> tuple[Tokenizer, list[str]]:
    """ModernBERT's and EuroBERT's kind: bytes, with a frame of its own."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=names, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = _frame("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", names)
    return tokenizer, names


def _protein(folder: Path) -> int:
    """ESM's own form: a vocab.txt of amino acids."""
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer"}))
    return len(tokens)
