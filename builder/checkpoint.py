"""Load a Hugging Face checkpoint, from a folder or the hub, and read off it what it is for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builder import labels
from builder.errors import BuildError
from builder.families import Family, family_of, spec_of
from builder.foreign import refuse_foreign_files
from builder.quiet import quiet
from builder.sentence_transformers import folder as sentences
from builder.sentence_transformers.model import SentenceModel, Source, read_cross_encoder, read_embedding
from handler.config import SetupConfig
from handler.original import CLASSES

_TASK_BY_ARCHITECTURE = {
    "ForSequenceClassification": "sequence_classification",
    "ForQuestionAnswering": "question_answering",
    "ForTokenClassification": "token_classification",
    "ForMaskedLM": "fill_mask",
    "Model": "embedding",
}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk and what its config says of it."""

    folder: Path
    source: str
    """The folder's last name or the hub name, as the user gave it; never a path of the building machine."""
    revision: str | None
    config: Any
    task: str
    max_length: int | None
    do_lower_case: bool | None
    root: Path
    """The folder as it was named; ``folder``, with config and weights, may be a sentence-transformers module's."""
    named: bool = False
    """Whether the setup config has given the labels their names."""
    chosen_pooling: str | None = None
    chosen_task: bool = False

    @property
    def family(self) -> Family:
        """The row of the family table."""
        return family_of(self.config)

    @property
    def labels(self) -> list[str]:
        """Label names by the classifier's rows, empty for tasks without labels. Raises BuildError."""
        return labels.of_config(self.config, self.source) if self._labelled else []

    @property
    def problem_type(self) -> str | None:
        """transformers' ``problem_type``; None where the number of labels decides."""
        return labels.problem_type(self.config) if self.task == "sequence_classification" else None

    @property
    def remarks(self) -> list[str]:
        """What the folder says of its labels that is not served, a line each."""
        return labels.remarks(self.folder, self.config) if self._labelled and not self.named else []

    @property
    def _labelled(self) -> bool:
        return self.task in ("sequence_classification", "token_classification")

    @property
    def uses_segments(self) -> bool:
        """Whether the second text of a pair has a segment of its own."""
        return self.family.segments and getattr(self.config, "type_vocab_size", 1) > 1

    @property
    def weights_file(self) -> Path:
        """The weights; safetensors where there is a choice. Raises BuildError when there are none."""
        for pattern in ("model.safetensors", "model-00001-*.safetensors", "pytorch_model.bin"):
            found = sorted(self.folder.glob(pattern))
            if found:
                return found[0]
        raise BuildError(f"{self.source}: no model.safetensors or pytorch_model.bin in the checkpoint's folder")

    @cached_property
    def sha256(self) -> str:
        """Of the weights file."""
        with self.weights_file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @cached_property
    def sentences(self) -> SentenceModel:
        """What the folder says to sentence-transformers, for embedding and rerank. Raises BuildError."""
        if self.task == "embedding":
            return read_embedding(self.as_source)
        if self.task == "rerank":
            return read_cross_encoder(self.as_source, self.config)
        if self.task == "sequence_classification" and sentences.is_cross_encoder(self.root, self.source):
            found = read_cross_encoder(self.as_source, self.config)
            if found.default_prompt_name and found.prompts[found.default_prompt_name]:
                raise BuildError(f"{self.source}: its default prompt is for a cross-encoder; use --mode rerank")
            return found
        return SentenceModel()

    @property
    def note(self) -> str | None:
        """What was taken for granted, in a line for the user; None where the folder says everything."""
        if self.task == "embedding" and self.chosen_pooling is None and not sentences.has_modules(self.root):
            return 'no modules.json: pooled by the mean, as sentence-transformers does; set "pooling" for another'
        if self.task == "rerank" and not self.chosen_task and sentences.unmarked(self.root, self.config):
            return "a classifier of one unnamed label is served as a cross-encoder; else give --mode"
        return None

    @property
    def as_source(self) -> Source:
        """The folder for ``builder.sentence_transformers``."""
        return Source(self.root, self.source, self.chosen_pooling, self.do_lower_case)

    def load_model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The untouched transformers model, in evaluation mode.

        Raises BuildError when weights that the task needs are missing (transformers would invent them).
        """
        import transformers

        loader = getattr(transformers, CLASSES[self.task])
        extra = {"add_pooling_layer": False} if self.task == "embedding" and self.config.model_type in _POOLED else {}
        with quiet():
            model, info = loader.from_pretrained(
                self.folder, config=self.config, dtype=dtype, output_loading_info=True, local_files_only=True,
                trust_remote_code=False, weights_only=True, ignore_mismatched_sizes=True, **extra,
            )  # fmt: skip
        labels.check_rows(sorted(info["mismatched_keys"]), self.config, self.source)
        missing = sorted(info["missing_keys"])
        if missing:
            raise BuildError(
                f"{self.source}: the checkpoint lacks weights for {self.task}: {', '.join(missing[:4])}; "
                "is it fine-tuned for this task?"
            )
        return model.eval()

    def load_tokenizer(self) -> Any:
        """The fast tokenizer; a slow one is converted. Raises BuildError when there is none."""
        import transformers

        extra = {} if self.do_lower_case is None else {"do_lower_case": self.do_lower_case}
        tokenizer = self.sentences.tokenizer
        with quiet():
            try:
                if tokenizer is None:
                    tokenizer = transformers.AutoTokenizer.from_pretrained(
                        self.folder, local_files_only=True, trust_remote_code=False, **extra
                    )
            except (OSError, ValueError, ImportError) as error:
                raise BuildError(f"{self.source}: no usable tokenizer ({str(error).splitlines()[0]})") from error
        if not tokenizer.is_fast:
            raise BuildError(f"{self.source}: its tokenizer {type(tokenizer).__name__} has no fast form")
        return tokenizer


_POOLED = ("bert", "roberta", "xlm-roberta", "camembert", "roberta-prelayernorm")


def load(config: SetupConfig) -> Checkpoint:
    """Find the checkpoint of a setup config and read its task.

    Raises BuildError when it cannot be found or read, or is of a kind this product does not serve.
    """
    import transformers

    root, source = _locate(config.model_name, config.revision)
    refuse_foreign_files(root, source)
    folder = sentences.transformer_folder(root, source)
    labels.check_map(folder, source)
    try:
        with quiet():
            model_config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise BuildError(f"{source}: no usable config.json ({str(error).splitlines()[0]})") from error
    spec_of(model_config)
    if config.labels is not None:
        labels.override(model_config, config.labels)
    if config.num_labels and config.num_labels != model_config.num_labels:
        raise BuildError(f"num_labels is {config.num_labels}, but {source} has {model_config.num_labels} labels")
    return Checkpoint(
        folder=folder,
        source=source,
        revision=config.revision,
        config=model_config,
        task=config.mode or _task(root, model_config, source),
        max_length=config.max_length,
        do_lower_case=config.do_lower_case,
        named=config.labels is not None,
        root=root,
        chosen_pooling=config.pooling,
        chosen_task=config.mode is not None,
    )


def _locate(name: str, revision: str | None) -> tuple[Path, str]:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), folder.resolve().name
    if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise BuildError(f"no folder {name!r}; give a local Hugging Face folder or a hub name such as org/model")
    return _download(name, revision), name


def _download(name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["config.json", *TOKENIZER_FILES]
    try:
        files = huggingface_hub.list_repo_files(name, revision=revision)
        patterns += sentences.hub_files(files)
        weights = "*.safetensors" if any(f.endswith(".safetensors") for f in files) else "pytorch_model*.bin*"
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*patterns, weights]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BuildError(f"{name!r} is neither a local folder nor a model the hub gives ({reason})") from error


def _task(root: Path, config: Any, source: str) -> str:
    stated = sentences.task_of(root, config, source)
    if stated is not None:
        return stated
    architecture = (config.architectures or ["none"])[0]
    for suffix, task in _TASK_BY_ARCHITECTURE.items():
        if architecture.endswith(suffix):
            return task
    raise BuildError(f'{source}: architecture {architecture!r} tells no task; set "mode" to one of {list(CLASSES)}')
