"""Small random Hugging Face checkpoints of every family, with real tokenizers, for tests."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests import newer_families as newer

TEXTS = [
    "the parcel has not arrived and nobody answers the phone",
    "Where is my order number 4711? It should be here by Monday!",
    "a lighthouse stands on the northern cliff since 1887",
    "how do I change the password of my account",
    "the colour of the chair differs from the picture",
]
CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "roberta-prelayernorm": "RobertaPreLayerNorm",
}
FAMILIES = tuple(CLASSES)
NEWER = tuple(newer.CLASSES)
"""Families whose attention, norms or feed-forward are not BERT's; ``newer.HEADS`` says which heads each has."""
CLASSES |= newer.CLASSES
HEADS = {
    "sequence_classification": "ForSequenceClassification",
    "question_answering": "ForQuestionAnswering",
    "token_classification": "ForTokenClassification",
    "fill_mask": "ForMaskedLM",
    "embedding": "Model",
}


def make_checkpoint(folder: Path, family: str, task: str = "sequence_classification", **sizes: Any) -> Path:
    """Write a random checkpoint; ``sizes`` override the config by BERT's names (hidden_size and so on)."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _tokenizer(folder, family)
    model = random_model(family, task, vocab_size=vocabulary, **sizes)
    model.save_pretrained(folder)
    return folder


def random_model(family: str, task: str, **sizes: Any) -> torch.nn.Module:
    """A seeded random transformers model whose weights are large enough that every part of it matters."""
    torch.manual_seed(7)
    name = CLASSES[family]
    config = getattr(transformers, f"{name}Config")(**_sizes(family, task, sizes))
    encoder = "EncoderModel" if family == "t5" else "Model"
    model = getattr(transformers, name + (encoder if task == "embedding" else HEADS[task]))(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if not parameter.requires_grad:  # RoFormer's sines and cosines
                continue
            spread = 0.3 if parameter.dim() == 1 else 2.0 / parameter.shape[-1] ** 0.5
            offset = 1.0 if "norm" in parameter_name.lower() and parameter_name.endswith("weight") else 0.0
            if parameter_name.endswith("SelfAttention.q.weight"):  # T5 does not divide products by sqrt(d)
                spread *= config.d_kv**-0.5
            parameter.copy_(offset + torch.randn(parameter.shape) * spread * (0.5 if offset else 1.0))
    return model


def _sizes(family: str, task: str, given: dict[str, Any]) -> dict[str, Any]:
    sizes = {
        "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 112, "max_position_embeddings": 140, "num_labels": 2 if "answer" in task else 3,
        "pad_token_id": 1 if _bpe(family) else 0,
        **newer.SIZES.get(family, {}),
        **given,
    }  # fmt: skip
    if family in NEWER:
        return newer.sizes(family, sizes, newer.special_ids(family))
    if _bpe(family):
        sizes.setdefault("type_vocab_size", 1)
    if family == "electra":
        sizes.setdefault("embedding_size", 32)
    if family == "distilbert":
        names = {
            "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim", "hidden_act": "activation",
        }  # fmt: skip
        sizes = {names.get(key, key): value for key, value in sizes.items()}
    return sizes


def _bpe(family: str) -> bool:
    return family in ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm")


def _tokenizer(folder: Path, family: str) -> int:
    if family in ("ernie", "nomic_bert", "roformer"):
        tokenizer = _wordpiece(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
        return tokenizer.get_vocab_size()
    if family in NEWER:
        return newer.write_tokenizer(folder, family, TEXTS, _unigram)
    if family in ("xlm-roberta", "camembert"):
        tokenizer = _unigram()
    elif _bpe(family):
        tokenizer = _byte_bpe(folder)
    else:
        tokenizer = _wordpiece(folder)
    name = {"roberta-prelayernorm": "Roberta"}.get(family, CLASSES[family])
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{name}Tokenizer"}))
    if family in ("xlm-roberta", "camembert"):
        tokenizer.save(str(folder / "tokenizer.json"))
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
        special |= {"unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def _wordpiece(folder: Path) -> Tokenizer:
    """BERT's own form: a vocab.txt and nothing else.

    Counted here, as the library's trainer gives another vocabulary in every process.
    """
    words = Counter(word for text in TEXTS for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    letters = sorted({letter for word in words for letter in word})
    joined = sorted({letter for word in words for letter in word[1:]})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    endings = sorted({word[-size:] for word in words for size in (2, 3) if len(word) > size + 1})
    frequent = [word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    pieces = [*special, *letters, *(f"##{letter}" for letter in joined), *frequent[::2]]
    pieces = list(dict.fromkeys([*pieces, *(f"##{ending}" for ending in endings)]))[:200]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _byte_bpe(folder: Path) -> Tokenizer:
    """RoBERTa's own form: vocab.json and merges.txt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.model.save(str(folder))
    return tokenizer


def _unigram(special: Sequence[str] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")) -> Tokenizer:
    """Of words and letters with scores by their counts; the library's trainer gives other ones in every process."""
    words = Counter(word for text in TEXTS for word in text.split())
    letters = sorted({letter for word in words for letter in word})
    unknown = next(place for place, token in enumerate(special) if "unk" in token.lower())
    scored = [(f"▁{word}", -3.0 - 1.0 / count) for word, count in sorted(words.items())][::2]
    vocabulary = [(token, 0.0) for token in special] + scored + [("▁", -4.0)] + [(letter, -6.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    ids = tokenizer.get_vocab()
    if "<s>" in ids:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    return tokenizer
