"""A small tokenizer and deterministic TorchScript models, so that the handler is tested without a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.predictor import Predictor
from handler.runtime import TracedModel
from handler.tokenizer import Tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "who", "where", "is", "it", "red", "blue", "green", "one", "two"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
PIECES = [*SPECIAL, *WORDS, *(set(LETTERS) - set(WORDS)), *(f"##{c}" for c in LETTERS), "##ing", "##s"]
VOCABULARY = {piece: index for index, piece in enumerate([*SPECIAL, *sorted(set(PIECES) - set(SPECIAL))])}
MAX_LENGTH = 24
ORIGINAL = {"format": "transformers", "file": "checkpoint", "devices": ["cpu", "cuda"]}


def save_tokenizer(path: Path) -> Path:
    backend = Backend(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])],
    )
    backend.add_special_tokens(SPECIAL)
    backend.save(str(path))
    return path


class PooledLogits(torch.nn.Module):
    """[B, labels]: depends on every valid token, its place and its segment, and on no pad."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        place = torch.arange(1, ids.size(1) + 1)
        weight = torch.sin(ids * 0.7 + place * 0.3 + segments) * mask
        count = mask.sum(1, keepdim=True)
        channels = torch.arange(1, self.labels + 1)
        return (torch.sin(weight.sum(1, keepdim=True) * channels) * 3 / count.sqrt(),)


class TokenOutputs(torch.nn.Module):
    """``outputs`` tensors of [B, S] (channels 0) or [B, S, channels]; pads hold large values, to catch their use."""

    def __init__(self, outputs: int, channels: int = 0) -> None:
        super().__init__()
        self.outputs = outputs
        self.channels = channels

    def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        place = torch.arange(1, ids.size(1) + 1)
        result: list[torch.Tensor] = []
        for output in range(self.outputs):
            base = torch.sin(ids * (0.7 + output) + place * 0.3) * 4
            base = torch.where(mask == 0, torch.full_like(base, 1e4), base)
            if self.channels > 0:
                base = torch.sin(base.unsqueeze(-1) * torch.arange(1, self.channels + 1)) * 3
            result.append(base)
        return result


class SeveralOutputs(torch.nn.Module):
    """A vector [B, width], weights [B, S] and vectors [B, S, width]; pads hold large values, to catch their use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooled = PooledLogits(width)
        self.tokens = TokenOutputs(1, width)

    def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        vectors = self.tokens(ids, segments, mask)[0]
        weights = torch.where(mask == 0, torch.full_like(vectors[:, :, 0], 1e4), vectors[:, :, 0].relu())
        return [self.pooled(ids, segments, mask)[0], weights, vectors]


class Pointer(torch.nn.Module):
    """Start and end logits that point at every place of one token."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def forward(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        logits = (ids == self.token).float() * 10.0
        return [logits, logits]


OF_TASKS: dict[str, dict[str, Any]] = {
    "zero_shot_classification": {"labels": ["contradiction", "neutral", "entailment"], "entailment": 2},
    "sparse_embedding": {"sparse": {"kind": "vocabulary"}},
    "multi_vector_embedding": {"multi_vector": {"skip": [VOCABULARY["."]], "query_length": 12}},
    "hybrid_embedding": {
        "outputs": ["dense", "sparse", "multi_vector"],
        "sparse": {"kind": "lexical", "skip": [VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]]},
        "multi_vector": {"skip_first": True, "mean": True},
    },
}
"""What archives of a task say beside the rest."""


def facts(task: str, **changes: Any) -> ArchiveFacts:
    return ArchiveFacts.model_validate(
        {
            "name": "fake",
            "task": task,
            "family": "bert",
            "encoder": "stock",
            "model": {"format": "torchscript", "file": "model.pt", "devices": ["cpu", "cuda"]},
            "compute": "fp32",
            "max_positions": MAX_LENGTH,
            "uses_segments": True,
            "pad_id": VOCABULARY["[PAD]"],
            "mask_id": VOCABULARY["[MASK]"],
            "sizes": {"layers": 1, "hidden": 8, "embedding": 8, "intermediate": 8, "heads": 1},
            "torch": {"built": "2.13.0"},
            **OF_TASKS.get(task, {}),
            **changes,
        }
    )


def save_archive(folder: Path, module: torch.nn.Module, task: str, config: dict[str, Any], **changes: Any) -> Path:
    """An extracted archive, as the builder would leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.script(module).save(str(folder / "model.pt"))
    facts(task, **changes).save(folder / "archive.json")
    (folder / "setup_config.json").write_text(SetupConfig(model_name="fake", **config).model_dump_json())
    save_tokenizer(folder / "tokenizer.json")
    return folder


def predictor(
    folder: Path, module: torch.nn.Module, task: str, config: dict | None = None, **changes: Any
) -> Predictor:
    """A predictor around a scripted fake; ``config`` are setup config keys, ``changes`` archive facts."""
    own = facts(task, **changes)
    settings = SetupConfig.model_validate({"model_name": "fake", "stride": 4, **(config or {})})
    tokenizer = Tokenizer(save_tokenizer(folder / "tokenizer.json"), own.max_positions, own.uses_segments)
    return Predictor(own, settings, tokenizer, TracedModel(torch.jit.script(module), torch.device("cpu")))
