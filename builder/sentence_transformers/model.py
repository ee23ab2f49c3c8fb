"""Embedding models and cross-encoders, read through sentence-transformers itself.

What is served is thus what that library computes on the folder; it is also the gate's reference
(``builder.gate.sentences``). It is imported only where a folder needs it, as that takes seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from builder.errors import BuildError
from builder.quiet import quiet
from builder.sentence_transformers import folder as folders
from builder.sentence_transformers.head import Dense, Normalize

if TYPE_CHECKING:
    from builder.sentence_transformers.outputs import Outputs

_HARMLESS_MODEL_KEYS = {
    "dtype", "torch_dtype", "attn_implementation", "add_pooling_layer", "use_safetensors", "low_cpu_mem_usage",
}  # fmt: skip
"""Of a Transformer module's ``model_args``: what changes no answer."""


_LONGEST_REASON = 240
"""Characters of the library's own words within an error's line."""


@dataclass(frozen=True)
class Source:
    """Where a model is read from: ``root`` holds ``modules.json``, if any; ``name`` is for messages.

    ``pooling`` and ``do_lower_case`` are the user's choice; None: as the folder says.
    """

    root: Path
    name: str
    pooling: str | None = None
    do_lower_case: bool | None = None


@dataclass(frozen=True)
class SentenceModel:
    """What a folder says of an embedding model or a cross-encoder, beyond its encoder."""

    max_length: int | None = None
    """Its ``max_seq_length``; None: as long as tokenizer and positions allow."""
    tokenizer: Any = None
    """As sentence-transformers set it up (lower-casing, say); None: the folder's own."""
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    pooling: str = "mean"
    """Names joined by "+", in the order of their vectors."""
    include_prompt: bool = True
    layers: tuple[nn.Module, ...] = ()
    """Between pooling and what the handler does: normalising, if that comes last, and cutting."""
    normalize: bool = False
    dimensions: int | None = None
    activation: str | None = None
    """Of a cross-encoder; see archive.json."""
    outputs: Outputs | None = None
    """Of a model that gives more than a pooled vector."""


def read_embedding(source: Source) -> SentenceModel:
    """An embedding model's settings and layers.

    A folder without ``modules.json`` is pooled by the mean, as sentence-transformers does. Raises BuildError naming
    what cannot be served.
    """
    if not folders.check_modules_or_plain(source.root, source.name, source.pooling):
        return SentenceModel(prompts={"query": "", "document": ""}, pooling=source.pooling or "mean")
    model = open_embedding(source)
    transformer, pooling, *rest = model
    check_transformer(source, transformer, "token_embeddings", "last_hidden_state")
    modes = [pooling.pooling_mode] if isinstance(pooling.pooling_mode, str) else list(pooling.pooling_mode)
    layers, width = layers_of(source, rest, len(modes) * transformer.get_embedding_dimension())
    normalize = bool(layers) and isinstance(layers[-1], Normalize)
    return replace(
        settings_of(source, model),
        pooling="+".join(modes),
        include_prompt=bool(pooling.include_prompt),
        layers=tuple(layers[:-1] if normalize else layers),
        normalize=normalize,
        dimensions=_dimensions(source, model.truncate_dim, width),
    )


def read_cross_encoder(source: Source, config: Any) -> SentenceModel:
    """A cross-encoder's settings; ``config`` is transformers'. Raises BuildError naming what cannot be served."""
    activation = None
    if config.num_labels == 1:
        activation = folders.cross_encoder_activation(source.root, config, source.name)
    if not folders.modules_of(source.root, source.name):
        return SentenceModel(activation=activation)
    folders.check_cross_encoder_modules(source.root, source.name)
    model = open_cross_encoder(source)
    check_transformer(source, model[0], "scores", "logits")
    return replace(settings_of(source, model), activation=activation)


def settings_of(source: Source, model: Any) -> SentenceModel:
    """What every kind of the library's models says: length, tokenizer and prompts. Raises BuildError for odd ones."""
    return SentenceModel(
        max_length=_max_length(source, model),
        tokenizer=model.tokenizer,
        prompts=_prompts(source, model),
        default_prompt_name=model.default_prompt_name,
    )


def open_embedding(source: Source, dtype: torch.dtype = torch.float32) -> Any:
    """The folder as a ``SentenceTransformer`` on the CPU, offline, with none of its own code. Raises BuildError."""
    from sentence_transformers import SentenceTransformer

    with _reading(source):
        if source.pooling is None:
            return SentenceTransformer(str(source.root), **_arguments(source, dtype)).eval()
        chosen = _chosen_pooling(source)
        if not folders.has_modules(source.root):
            model: Any = SentenceTransformer(str(source.root), **_arguments(source, dtype))
            model[1] = chosen.load("")
            return model.eval()
        rows = folders.read_json(source.root / folders.MODULES, source.name)
        types = {row["type"]: chosen for row in rows if row["type"].endswith(".Pooling")}
        return SentenceTransformer._load_with_module_classes(
            str(source.root), types, **_arguments(source, dtype)
        ).eval()


def _chosen_pooling(source: Source) -> Any:
    """A Pooling class that loads as the user's choice, whatever the folder says: that may be what cannot be read."""
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import AutoConfig

    folder = folders.transformer_folder(source.root, source.name)
    width = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).hidden_size
    modes = (source.pooling or "mean").split("+")

    class Chosen(Pooling):
        @classmethod
        def load(cls, model_name_or_path: str, *_: Any, **__: Any) -> Any:
            return Pooling(width, modes)

    return Chosen


def open_cross_encoder(source: Source, dtype: torch.dtype = torch.float32) -> Any:
    """The folder as a ``CrossEncoder``, on the same terms. Raises BuildError."""
    return opened(source, "CrossEncoder", dtype)


def opened(source: Source, kind: str, dtype: torch.dtype) -> Any:
    """The folder as a class of the library, on the CPU, offline, with none of its own code. Raises BuildError."""
    import sentence_transformers

    with _reading(source):
        return getattr(sentence_transformers, kind)(str(source.root), **_arguments(source, dtype)).eval()


def _arguments(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    tokenizer = {} if source.do_lower_case is None else {"do_lower_case": source.do_lower_case}
    return {
        "device": "cpu",
        "local_files_only": True,
        "trust_remote_code": False,
        "model_kwargs": {"dtype": dtype},
        "processor_kwargs": tokenizer,
    }


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Without the library's advice, and with its errors in one line."""
    level = logging.getLogger("sentence_transformers").level
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    except BuildError:
        raise
    except Exception as error:  # whatever a damaged folder makes a library raise
        reason = " ".join(str(error).split()).replace(str(source.root), source.name) or type(error).__name__
        reason = f"{reason[:_LONGEST_REASON]}..." if len(reason) > _LONGEST_REASON else reason
        raise BuildError(f"{source.name}: sentence-transformers cannot read it ({reason})") from error
    finally:
        logging.getLogger("sentence_transformers").setLevel(level)


def check_transformer(
    source: Source, transformer: Any, output: str, of_model: str, carried: tuple[str, ...] = ()
) -> None:
    """Raises BuildError for settings of the Transformer module that are not carried over; ``carried``: those that
    belong to one kind of model, whose reader takes them."""
    name = source.name
    modality = transformer.modality_config.get("text", {})
    made = modality.get("method_output_name")
    if transformer.module_output_name != output or modality.get("method") != "forward" or made != of_model:
        raise BuildError(f"{name}: its Transformer module gives {made!r}; supported: {of_model!r}")
    if source.do_lower_case is False and transformer.do_lower_case:
        raise BuildError(f"{name}: do_lower_case is false in the setup config and true in the model's; settle on one")
    if "message" in transformer.modality_config:
        raise BuildError(f"{name}: its Transformer module reads chat messages, which is not supported")
    for key in ("processing_kwargs", "query_length", "document_length", "query_expansion"):
        if key not in carried and getattr(transformer, key, None):
            raise BuildError(f"{name}: its Transformer module sets {key}, which is not supported")
    modules = folders.modules_of(source.root, name)
    if not modules:
        return
    stated = type(transformer).load_config(str(source.root), subfolder=modules[0].path, local_files_only=True)
    model_keys = set(stated.get("model_args") or stated.get("model_kwargs") or {}) - _HARMLESS_MODEL_KEYS
    config_keys = set(stated.get("config_args") or stated.get("config_kwargs") or {})
    if unknown := sorted(model_keys | config_keys):
        raise BuildError(f"{name}: its Transformer module sets {', '.join(unknown)} of the model; use config.json")


def layers_of(
    source: Source, modules: list[Any], width: int, place: str = "sentence_embedding"
) -> tuple[list[nn.Module], int]:
    """The modules behind the pooling as plain layers, and how many dimensions they give; ``place``: what they change,
    by the library's name."""
    layers: list[nn.Module] = []
    for module in modules:
        kind = type(module).__name__
        names = (getattr(module, "module_input_name", None), getattr(module, "module_output_name", None))
        if kind in ("Dense", "Normalize") and names != (place, place):
            raise BuildError(f"{source.name}: its module {kind} reads {names[0]!r} and writes {names[1]!r}")
        takes = {"Dense": "in_features", "LayerNorm": "dimension"}.get(kind)
        if takes is not None and getattr(module, takes) != width:
            raise BuildError(f"{source.name}: its module {kind} takes {getattr(module, takes)} dimensions, not {width}")
        if kind == "Dense":
            layers.append(_dense(source, module))
            width = module.out_features
        elif kind == "LayerNorm":
            layers.append(module.norm)
        elif kind == "Normalize":
            layers.append(Normalize())
    return layers, width


def _dense(source: Source, module: Any) -> nn.Module:
    residual = None
    if getattr(module, "use_residual", False):
        residual = nn.Identity() if module.in_features == module.out_features else module.residual
    return Dense(module.linear, module.activation_function, residual)


def _max_length(source: Source, model: Any) -> int | None:
    length = model.max_seq_length
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, int | float) or length != length or length < 3:
        raise BuildError(f"{source.name}: max_seq_length is {length!r}; it must leave room for a token")
    return int(length) if length < 1 << 40 else None


def _dimensions(source: Source, stated: Any, width: int) -> int | None:
    if stated is None:
        return None
    if isinstance(stated, bool) or not isinstance(stated, int) or stated < 1:
        raise BuildError(f"{source.name}: truncate_dim is {stated!r}; it must be a number of dimensions")
    return min(stated, width)


def _prompts(source: Source, model: Any) -> dict[str, str]:
    for name, text in model.prompts.items():
        if not isinstance(text, str):
            raise BuildError(f"{source.name}: the prompt {name!r} is no text")
    return dict(model.prompts)
