"""What a sentence-transformers folder says in its JSON files, read without loading a weight or running its code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from builder.errors import BuildError

MODULES = "modules.json"
MODEL_CONFIG = "config_sentence_transformers.json"
ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid", "Tanh": "tanh"}
"""Classes of torch.nn that a cross-encoder's config may name -> archive.json's word."""
_LAYERS = ("Dense", "LayerNorm", "Normalize", "Dropout")
_WITH_WEIGHTS = ("Dense", "LayerNorm")
_OWN = "sentence_transformers."
_TASKS = {
    "SentenceTransformer": "embedding",
    "CrossEncoder": "rerank",
    "SparseEncoder": "sparse_embedding",
    "MultiVectorEncoder": "multi_vector_embedding",
    "ColBERT": "multi_vector_embedding",
}
"""By the ``model_type`` beside ``modules.json``; ColBERT is PyLate's."""
_STANFORD = "HF_ColBERT"
"""The architecture that Stanford's ColBERT states in config.json."""
_OF_PYLATE = "pylate.models.Dense.Dense"
"""Its class is sentence-transformers' Dense, and is read as that."""
_TRANSFORMERS = ("Transformer", "MLMTransformer")


@dataclass(frozen=True)
class Module:
    """A line of ``modules.json``: the module's class, without its package, and its folder within the model's."""

    kind: str
    path: str


def read_json(path: Path, source: str) -> Any:
    """A JSON file's content. Raises BuildError in one line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildError(f"{source}: {path.name} cannot be read ({error})") from error


def read_object(path: Path, source: str) -> dict[str, Any]:
    """The same of a file that holds an object."""
    content = read_json(path, source)
    if not isinstance(content, dict):
        raise BuildError(f"{source}: {path.name} is not an object")
    return content


def modules_of(root: Path, source: str) -> list[Module]:
    """The modules in their order; empty where the folder has no ``modules.json``.

    Raises BuildError for a file of another form, a path that leads out of the folder, and code of the folder's own.
    """
    if not has_modules(root):
        return []
    rows = read_json(root / MODULES, source)
    if not isinstance(rows, list) or not rows:
        raise BuildError(f"{source}: {MODULES} lists no modules")
    found = []
    for row in rows:
        kind, path = (row.get("type"), row.get("path", "")) if isinstance(row, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise BuildError(f"{source}: {MODULES} has an entry without type or path")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise BuildError(f"{source}: {MODULES} names {path!r}, which lies outside the model's folder")
        if not kind.startswith(_OWN) and kind != _OF_PYLATE:
            raise BuildError(f"{source}: its module {kind!r} is code outside sentence-transformers, which is never run")
        found.append(Module(kind.rsplit(".", 1)[-1], path))
    return found


def transformer_folder(root: Path, source: str) -> Path:
    """Where config, weights and tokenizer lie: the folder itself, or that of its first module, the Transformer."""
    modules = modules_of(root, source)
    if not modules or (modules[0].kind not in _TRANSFORMERS and (root / "config.json").is_file()):
        return root
    if modules[0].kind not in _TRANSFORMERS:
        raise BuildError(f"{source}: its sentence-transformers module {modules[0].kind!r} is not supported")
    return root / modules[0].path


def model_config(root: Path, source: str) -> dict[str, Any]:
    """``config_sentence_transformers.json``, which sentence-transformers reads beside ``modules.json`` only."""
    path = root / MODEL_CONFIG
    if not has_modules(root) or not path.is_file():
        return {}
    content = read_object(path, source)
    prompts = content.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise BuildError(f"{source}: the prompts in {MODEL_CONFIG} are not texts by name")
    return content


def task_of(root: Path, config: Any, source: str) -> str | None:
    """The task that a folder states beside its architecture; None where it leaves that to the architecture.

    ``modules.json`` decides, with the ``model_type`` beside it (sentence-transformers' own rule). Without one, a
    sequence classifier is a cross-encoder where its config names sentence-transformers, or where it has one label that
    nobody named and states no ``problem_type``: then a relevance score is likelier than a class or a regression
    (text-embeddings-inference takes every classifier of one label so). A cross-encoder of several labels ranks
    nothing: it classifies pairs. ``config``: transformers'. Raises BuildError for kinds that are not supported.
    """
    if modules_of(root, source):
        kind = model_config(root, source).get("model_type", "SentenceTransformer")
        if kind not in _TASKS:
            raise BuildError(f"{source}: a {kind} model is not supported; supported: {', '.join(_TASKS)}")
        if kind == "CrossEncoder":
            check_cross_encoder_modules(root, source)
        if kind != "CrossEncoder" or config.num_labels == 1:
            return _TASKS[kind]
        return "sequence_classification"
    if _STANFORD in (config.architectures or []):
        return "multi_vector_embedding"
    if not any(str(name).endswith("ForSequenceClassification") for name in config.architectures or []):
        return None
    unnamed = getattr(config, "problem_type", None) is None and list(config.id2label.values()) == ["LABEL_0"]
    return "rerank" if config.num_labels == 1 and (unnamed or not unmarked(root, config)) else None


def is_cross_encoder(root: Path, source: str) -> bool:
    """Whether the folder says so itself, whatever task it is built for."""
    return model_config(root, source).get("model_type") == "CrossEncoder"


def is_nli(config: Any) -> bool:
    """Whether a classifier's labels say that it tells what follows from a text."""
    return any(str(name).lower().startswith("entail") for name in (config.label2id or {}))


def has_modules(root: Path) -> bool:
    """Whether the folder is one of sentence-transformers' own form."""
    return (root / MODULES).is_file()


def unmarked(root: Path, config: Any) -> bool:
    """Whether nothing says that sentence-transformers made this classifier."""
    marks = ("sentence_transformers", "sbert_ce_default_activation_function")
    return not has_modules(root) and all(getattr(config, mark, None) is None for mark in marks)


def check_embedding_modules(root: Path, source: str, pooling: str | None = None) -> list[Module]:
    """The modules of an embedding model, in an order that can be served; none of a plain folder.

    ``pooling``: the user's choice, for which the folder needs no settings. Raises BuildError naming what cannot be.
    """
    modules = modules_of(root, source)
    if not modules:
        return []
    kinds = [module.kind for module in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", *_LAYERS):
            raise BuildError(f"{source}: its sentence-transformers module {kind!r} is not supported")
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(_LAYERS):
        raise BuildError(
            f"{source}: its modules are {', '.join(kinds)}; supported: Transformer, Pooling, then any of "
            f"{', '.join(_LAYERS)}"
        )
    check_settings(root, modules[0], source)
    for module in modules[1:]:
        _check_files(root / module.path, module, source, pooling)
    return modules


def check_sparse_modules(root: Path, source: str) -> None:
    """Raises BuildError naming the modules of a sparse encoder that is more than a masked language model and a pooling;
    a plain folder is pooled by the maximum, as the library does."""
    modules = modules_of(root, source)
    kinds = [module.kind for module in modules]
    if modules and (len(kinds) != 2 or kinds[0] not in _TRANSFORMERS or kinds[1] != "SpladePooling"):
        raise BuildError(
            f"{source}: a sparse encoder of modules {', '.join(kinds)} is not supported, only Transformer (or "
            "MLMTransformer) and SpladePooling"
        )
    if modules:
        check_settings(root, modules[0], source)


def check_multi_vector_modules(root: Path, source: str) -> None:
    """Raises BuildError naming the modules of a multi-vector encoder that cannot be served, and for folders of other
    kinds, to which sentence-transformers would add a layer drawn at random."""
    modules = modules_of(root, source)
    kind = model_config(root, source).get("model_type", "SentenceTransformer")
    if not modules and _STANFORD in (read_object(root / "config.json", source).get("architectures") or []):
        return
    if _TASKS.get(kind) != "multi_vector_embedding":
        raise BuildError(f"{source}: it has no layers for token vectors; it is no multi-vector (ColBERT) model")
    kinds = [module.kind for module in modules]
    if kinds[:1] != ["Transformer"] or not set(kinds[1:]) <= {*_LAYERS, "MultiVectorMask"}:
        raise BuildError(
            f"{source}: a multi-vector encoder of modules {', '.join(kinds)} is not supported; supported: Transformer, "
            f"then any of {', '.join(_LAYERS)}, MultiVectorMask"
        )
    check_settings(root, modules[0], source)
    for module in modules[1:]:
        if module.kind in _WITH_WEIGHTS:
            _check_files(root / module.path, module, source, None)


def check_settings(root: Path, transformer: Module, source: str) -> None:
    """Raises BuildError naming a file of settings that cannot be read: the library would not say which."""
    model_config(root, source)
    for path in sorted((root / transformer.path).glob("sentence_*_config.json")):
        read_object(path, source)


def _check_files(folder: Path, module: Module, source: str, pooling: str | None) -> None:
    """Raises BuildError where a module's settings or weights are missing, or its activation is no class of torch.nn.

    sentence-transformers takes tanh for an activation it does not trust, which is not what the folder says.
    """
    where = f"{source}: its module {module.kind}, {module.path or 'in the folder itself'},"
    needed = module.kind in _WITH_WEIGHTS or (module.kind == "Pooling" and pooling is None)
    if needed and not (folder / "config.json").is_file():
        raise BuildError(f"{where} has no config.json")
    weights = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    if module.kind in _WITH_WEIGHTS and not any(file.is_file() for file in weights):
        raise BuildError(f"{where} has no model.safetensors or pytorch_model.bin")
    if not needed:
        return
    stated = read_object(folder / "config.json", f"{source}: {module.path or 'the folder'}")
    if module.kind == "Dense":
        activation = stated.get("activation_function", "torch.nn.Tanh")
        if not str(activation).startswith("torch.nn."):
            raise BuildError(f"{where} has the activation {activation!r}; supported: classes of torch.nn")


def check_cross_encoder_modules(root: Path, source: str) -> None:
    """Raises BuildError naming the modules of a cross-encoder that is more than a classifier of pairs."""
    modules = modules_of(root, source)
    kinds = [module.kind for module in modules]
    if kinds == ["Transformer"]:
        check_settings(root, modules[0], source)
    else:
        raise BuildError(f"{source}: a cross-encoder of modules {', '.join(kinds)} is not supported, only Transformer")


def check_modules_or_plain(root: Path, source: str, pooling: str | None) -> bool:
    """Whether the folder has modules, which are then in an order that can be served. Raises BuildError.

    ``pooling``: the user's, who then knows that a folder without ``modules.json`` says nothing.
    """
    if check_embedding_modules(root, source, pooling):
        return True
    stray = incomplete(root)
    if stray is not None and pooling is None:
        raise BuildError(
            f"{source}: {stray} means nothing without {MODULES}, which is missing; copy it as well, or set pooling"
        )
    return False


def incomplete(root: Path) -> str | None:
    """A file that only means something beside ``modules.json``, where that is missing.

    sentence-transformers ignores it then, so that the model would not be what its files say.
    """
    if has_modules(root):
        return None
    settings = [*root.glob("sentence_*_config.json"), *root.glob("*/config.json")]
    for path in sorted(settings):
        if path.parent == root or _describes_pooling(path):
            return path.relative_to(root).as_posix()
    return None


def _describes_pooling(path: Path) -> bool:
    try:
        return any(str(key).startswith("pooling_mode") for key in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def cross_encoder_activation(root: Path, config: Any, source: str) -> str:
    """What makes a cross-encoder's logit its score: ``identity``, ``sigmoid`` or ``tanh``.

    As CrossEncoder reads it: beside ``modules.json``, in config.json's ``sentence_transformers``, in 2.x's key; sigmoid
    where none is stated. Raises BuildError for another function: a config chooses no code that is run here.
    """
    path = model_config(root, source).get("activation_fn") or _stated_activation(config)
    if path is None:
        return "sigmoid"
    package, _, name = str(path).rpartition(".")
    if not package.startswith("torch.nn") or name not in ACTIVATIONS:
        raise BuildError(f"{source}: the activation {path!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _stated_activation(config: Any) -> str | None:
    own = getattr(config, "sentence_transformers", None)
    if isinstance(own, dict) and "activation_fn" in own:
        return own["activation_fn"]
    return getattr(config, "sbert_ce_default_activation_function", None)


def hub_files(files: Sequence[str]) -> list[str]:
    """Of a hub repository's files those of modules in folders: their settings and weights, of one format each."""
    if MODULES not in files:
        return []
    folders = {file.rpartition("/")[0] for file in files if file.endswith("/config.json")}
    folders |= {file.rpartition("/")[0] for file in files if "/sentence_" in file and file.endswith("_config.json")}
    wanted = [f"{folder}/*.{kind}" for folder in sorted(folders) for kind in ("json", "txt", "model")]
    for folder in sorted(folders):
        safe = any(file.startswith(f"{folder}/") and file.endswith(".safetensors") for file in files)
        wanted.append(f"{folder}/*.safetensors" if safe else f"{folder}/pytorch_model*.bin")
    return [MODULES, MODEL_CONFIG, "sentence_*_config.json", *wanted]
