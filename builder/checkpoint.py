"""Load a Hugging Face checkpoint, from a folder or the hub, and read off it what it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from builder import labels, tokenizers, weights
from builder.adapters import Adapter, chosen_adapter, find_adapter
from builder.errors import BuildError
from builder.families import Family, family_of, max_positions, most_positions, spec_of
from builder.families.disk import as_loaded
from builder.families.hub import native, shown_as
from builder.files import first_line, read_json
from builder.locate import own_folder
from builder.proteins import is_protein
from builder.quantisation.stored import Stored, read_stored
from builder.quiet import quiet
from builder.sentence_transformers import folder as sentences
from builder.sentence_transformers import outputs as several
from builder.sentence_transformers.model import SentenceModel, Source, read_cross_encoder, read_embedding
from builder.sizes import check_sizes
from handler.config import SetupConfig
from handler.original import CLASSES, class_of

_TASK_BY_ARCHITECTURE = {
    "ForSequenceClassification": "sequence_classification",
    "ForQuestionAnswering": "question_answering",
    "ForTokenClassification": "token_classification",
    "ForMaskedLM": "fill_mask",
    "Model": "embedding",
}


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
    adapter: Adapter | None = None
    translated: bool = False
    """Whether config.json was written for code on the hub (``builder.families.hub``)."""

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
        return self.task in ("sequence_classification", "token_classification", "zero_shot_classification")

    @property
    def entailment(self) -> int | None:
        """Of a zero-shot classifier: the row of the label that says that a claim follows. Raises BuildError."""
        return labels.entailment(self.config, self.source) if self.task == "zero_shot_classification" else None

    @property
    def bare(self) -> bool:
        """Whether the transformers model is the encoder alone, its head being what sentence-transformers or BGE-M3 puts
        behind it."""
        if self.task == "sparse_embedding":
            return several.has_lexical(self.root)
        return self.task in ("embedding", "multi_vector_embedding", "hybrid_embedding")

    @property
    def uses_segments(self) -> bool:
        """Whether the second text of a pair has a segment of its own: the model has two, and its tokenizer says so."""
        two = self.family.segments and getattr(self.config, "type_vocab_size", 1) > 1
        return two and "token_type_ids" in self.tokenizer.model_input_names

    @property
    def longest(self) -> int:
        """The longest sequence in tokens, special ones included: as the config was told, at most what the positions
        allow; else the smaller of those and the limit of sentence-transformers' settings or the tokenizer's own."""
        positions = max_positions(self.config)
        if self.max_length is not None:
            return min(most_positions(self.config) or self.max_length, self.max_length)
        stated = self.sentences.max_length or tokenizers.stated_length(self.tokenizer_folder, self.source)
        return min(positions, stated or positions)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files lie: an adapter may have its base's."""
        if self.adapter is None or any((self.folder / name).is_file() for name in tokenizers.VOCABULARIES):
            return self.folder
        return self.adapter.base

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files of weights, an adapter's last. Raises BuildError when there are none."""
        if self.adapter is None:
            return weights.weight_files(self.folder, self.source)
        return [*weights.weight_files(self.adapter.base, self.source), self.adapter.weights]

    def check_weight_files(self) -> None:
        """Raises BuildError when there are none, without reading any."""
        _ = self.weight_files

    @cached_property
    def sha256(self) -> str:
        """Of the weights, over all files."""
        return weights.digest(self.weight_files)

    @property
    def rewritten(self) -> bool:
        """Whether other programs cannot read the weights as they lie: an adapter, or names within a wrapper's."""
        return self.adapter is not None or (self.unused is not None and self._places.wrapped) or bool(self.stored)

    @cached_property
    def unused(self) -> list[str]:
        """Weights of the files that belong to heads of other tasks."""
        return self._weights()[1]

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """What the files say of weights that are quantised already, by the model's names. Raises BuildError."""
        return self._weights()[2]

    @cached_property
    def sentences(self) -> SentenceModel:
        """What the folder says to sentence-transformers, for embeddings and rerank. Raises BuildError."""
        if self.task == "embedding":
            return read_embedding(self.as_source)
        if self.task in _SEVERAL:
            return _SEVERAL[self.task](self.as_source, getattr(self.config, self.family.config.hidden))
        if self.task == "rerank":
            return read_cross_encoder(self.as_source, self.config)
        classifies = self.task in ("sequence_classification", "zero_shot_classification")
        if classifies and sentences.is_cross_encoder(self.root, self.source):
            found = read_cross_encoder(self.as_source, self.config)
            if found.default_prompt_name and found.prompts[found.default_prompt_name]:
                raise BuildError(f"{self.source}: its default prompt is for a cross-encoder; use --task rerank")
            return found
        return SentenceModel()

    @property
    def prompted(self) -> bool:
        """Whether a text may have another before it, as sentence-transformers' models have."""
        return self.task in ("embedding", "rerank", *_SEVERAL)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the folder, a line each."""
        return [*self.remarks, *([] if self.note is None else [self.note])]

    @property
    def note(self) -> str | None:
        """What was taken for granted, in a line for the user; None where the folder says everything."""
        unpooled = self.chosen_pooling is None and not sentences.has_modules(self.root)
        if self.task in ("embedding", "hybrid_embedding") and unpooled:
            return 'no modules.json: pooled by the mean, as sentence-transformers does; set "pooling" for another'
        if self.task == "rerank" and not self.chosen_task and sentences.unmarked(self.root, self.config):
            return "a classifier of one unnamed label is served as a cross-encoder; else give --task"
        if self.task == "sequence_classification" and not self.chosen_task and sentences.is_nli(self.config):
            return "its labels are those of inference; --task zero_shot_classification takes labels with each request"
        return None

    @property
    def as_source(self) -> Source:
        """The folder for ``builder.sentence_transformers``."""
        root = Path(self._view.name) if self.translated else self.root
        return Source(root, self.source, self.chosen_pooling, self.do_lower_case)

    @cached_property
    def _view(self) -> TemporaryDirectory[str]:
        return shown_as(self.root, self.folder, self.config)

    def load_model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The untouched transformers model, an adapter merged into it, in evaluation mode.

        Raises BuildError when weights that the task needs are missing (transformers would invent them), are damaged,
        have no place in the model, or hold values that are no numbers.
        """
        state = self._weights()[0]
        # An adapter is merged in fp32, whatever its base was saved in.
        type_ = dtype if self.adapter is None else torch.float32
        try:
            model, missing = weights.fill(self._class, self.config, state, type_, self._extra)
        except Exception as error:  # transformers raises what a config makes it raise
            raise BuildError(f"{self.source}: transformers cannot load it ({first_line(error)})") from error
        if self.adapter is not None:
            return cast(self.adapter.merged(model, missing), dtype)
        if missing:
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            raise BuildError(
                f"{self.source}: the checkpoint lacks weights for {self.task}: {', '.join(missing[:4])}{more}; "
                "is it fine-tuned for this task?"
            )
        return model

    def load_model_alone(self) -> nn.Module:
        """The model in fp32 as transformers reads the folder by itself, where it can; else as :meth:`load_model`."""
        if self.adapter is None and not self.stored:
            with quiet():
                model, info = self._class.from_pretrained(
                    self.folder, config=self.config, dtype=torch.float32, output_loading_info=True,
                    local_files_only=True, trust_remote_code=False, weights_only=True, **self._extra,
                )  # fmt: skip
            if not info["missing_keys"]:
                return model.eval()
        return self.load_model()

    def _weights(self) -> tuple[dict[str, Tensor], list[str], dict[str, Stored]]:
        """The tensors by the model's names, the names of unused ones, and what is known of quantised ones."""
        files = self.weight_files if self.adapter is None else self.weight_files[:-1]
        read, stored = read_stored(weights.read(files, self.source), self.source)
        state = as_loaded(read, self.config.model_type, self.source)
        if self.adapter is not None:
            state = self.adapter.without_own(state)
        taken, unused = self._places.accepted(state)
        weights.check_finite(taken, self.source)
        return taken, unused, {name: stored[id(tensor)] for name, tensor in taken.items() if id(tensor) in stored}

    @cached_property
    def _places(self) -> weights.Places:
        return weights.Places(self._class, self.config, self._extra, self.source)

    @property
    def _class(self) -> Any:
        import transformers

        kind = self.config.model_type
        if self.family.lacks(self.task):
            raise BuildError(f"{self.source}: {kind} has no {self.task} that is an encoder with a head")
        try:
            found = getattr(transformers, class_of(self.task, kind, self.bare))._model_mapping[type(self.config)]
        except KeyError as error:
            raise BuildError(f"{self.source}: transformers has no {self.task} for model type {kind!r}") from error
        return found[0] if isinstance(found, tuple) else found

    @property
    def _extra(self) -> Mapping[str, Any]:
        return {"add_pooling_layer": False} if self.bare and self.family.pooler else {}

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer, checked; see :meth:`load_tokenizer`."""
        files = self.new_tokenizer()  # first, as it says best what is wrong with them
        tokenizer = self.sentences.tokenizer or files
        if is_protein(tokenizer):
            tokenizer = files
        tokenizers.check_tokenizer(tokenizer, self.config, self.task, self.longest, self.source)
        return tokenizer

    def load_tokenizer(self) -> Any:
        """The fast tokenizer; a slow one is converted.

        Raises BuildError when there is none, it is not that of the folder's files, or the model cannot read its ids.
        """
        return self.tokenizer

    def new_tokenizer(self) -> Any:
        """The folder's tokenizer, read anew. Raises BuildError when there is none or it had to be made up."""
        return tokenizers.load_tokenizer(self.tokenizer_folder, self.source, self.do_lower_case)


_SEVERAL: dict[str, Callable[[Source, int], SentenceModel]] = {
    "sparse_embedding": several.read_sparse,
    "multi_vector_embedding": several.read_multi_vector,
    "hybrid_embedding": several.read_hybrid,
}


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model's weights in ``dtype``; constants such as rotary frequencies stay as they are, as when it is loaded."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def load(config: SetupConfig) -> Checkpoint:
    """Find the checkpoint of a setup config and read its task.

    Raises BuildError when it cannot be found or read, or is of a kind this product does not serve.
    """
    root, source, revision = own_folder(config.model_name, config.revision)
    adapter = find_adapter(root, source, lambda name: own_folder(name, None)[0])
    folder = sentences.transformer_folder(root, source)
    if config.adapter is not None:
        adapter = chosen_adapter(config.adapter, folder, source)
    model_config, translated = _read_config(folder, source, adapter)
    spec_of(model_config)
    if config.labels is not None:
        labels.override(model_config, config.labels)
    if config.num_labels and config.num_labels != model_config.num_labels:
        raise BuildError(f"num_labels is {config.num_labels}, but {source} has {model_config.num_labels} labels")
    return Checkpoint(
        folder=folder,
        source=source,
        revision=revision,
        config=model_config,
        task=config.task or (adapter and adapter.task) or _task(root, model_config, source),
        max_length=config.max_length,
        do_lower_case=config.do_lower_case,
        named=config.labels is not None,
        root=root,
        chosen_pooling=config.pooling,
        chosen_task=config.task is not None,
        adapter=adapter,
        translated=translated,
    )


def _read_config(folder: Path, source: str, adapter: Adapter | None) -> tuple[Any, bool]:
    """config.json as transformers reads it, once its values have been looked at, and whether it was translated."""
    import transformers

    if adapter is not None and not (folder / "config.json").is_file():
        folder = adapter.base
    if not (folder / "config.json").is_file():
        raise BuildError(f"{source}: no config.json in the checkpoint's folder; is it a Hugging Face checkpoint?")
    content = read_json(folder / "config.json")
    translated = native(content, source)
    check_sizes(translated or content, source)
    labels.check_map(folder, source)
    outputs = None if adapter is None else adapter.outputs
    extra = {} if outputs is None else {"num_labels": outputs}
    try:
        with quiet():
            if translated is not None:
                config = transformers.AutoConfig.for_model(**{**translated, **extra})
            else:
                config = transformers.AutoConfig.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False, **extra
                )
        # The builder reads such weights itself: transformers would ask for the library that made them.
        config.__dict__.pop("quantization_config", None)
        return config, translated is not None
    except Exception as error:  # transformers raises what a value makes it raise
        raise BuildError(f"{source}: no usable config.json ({first_line(error)})") from error


def _task(root: Path, config: Any, source: str) -> str:
    stated = sentences.task_of(root, config, source)
    if stated is not None:
        return stated
    architecture = (config.architectures or ["none"])[0]
    for suffix, task in _TASK_BY_ARCHITECTURE.items():
        if architecture.endswith(suffix):
            return task
    raise BuildError(f"{source}: architecture {architecture!r} tells no task; give --task, one of {', '.join(CLASSES)}")
