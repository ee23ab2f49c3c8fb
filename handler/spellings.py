"""The words of setup configs, options and archive.json that are spelled in two ways, and what each older one means.

Version 0.1.0 and the parent example say in one word what are two things: ``mode`` was the task in a setup config and
the storage in archive.json, ``kind`` is encoder and file format, ``data_type`` is compute type and quantisation scheme.
This is the only place that knows both; everything else knows the newer words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from handler.schemes import SCHEMES

Task = Literal[
    "sequence_classification",
    "question_answering",
    "token_classification",
    "embedding",
    "rerank",
    "fill_mask",
    "zero_shot_classification",
    "sparse_embedding",
    "multi_vector_embedding",
    "hybrid_embedding",
]
TASKS: tuple[str, ...] = get_args(Task)
PIPELINES: dict[str, Task] = {
    "text_classification": "sequence_classification",
    "sentiment_analysis": "sequence_classification",
    "ner": "token_classification",
    "feature_extraction": "embedding",
    "sentence_similarity": "embedding",
    "text_ranking": "rerank",
}
"""The names of transformers' pipelines and the hub's tags where they are others than the tasks' (with underscores)."""
Encoder = Literal["fused", "stock"]
"""``fused``: the kernels of this project; ``stock``: transformers' own modules."""
ModelFormat = Literal["torchscript", "export", "transformers"]
"""``torchscript``: traced by torch.jit; ``export``: by torch.export; ``transformers``: as transformers saves it."""
FILES = {"torchscript": "model.pt", "export": "model.pt2", "transformers": "checkpoint"}
"""Where an archive keeps a model of a format."""

KINDS: dict[str, tuple[str, str]] = {
    "ori": ("stock", "transformers"),
    "ths": ("stock", "torchscript"),
    "thsext": ("fused", "torchscript"),
}
"""The parent project's words -> encoder and format."""
_ALSO = {"torchscript": ("export",)}
"""Formats that the parent project did not know, by the one in whose place they stand in its words."""
DATA_TYPES: dict[str, tuple[str, str]] = {
    "fp32": ("fp32", "none"),
    "bf16": ("bf16", "none"),
    "fp16": ("fp16", "none"),
    "int8": ("bf16", "int8"),
    "fp8": ("bf16", "fp8"),
}
"""-> compute type and scheme."""
OLDER: dict[str, tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]] = {
    "mode": (("task",), {task: (task,) for task in TASKS}),
    "kind": (("encoder", "format"), KINDS),
    "data_type": (("compute", "scheme"), DATA_TYPES),
}
"""An older key of setup configs and options -> the newer keys, and their values by the older value."""


def task_named(word: str) -> str:
    """The task of a name, which may be a pipeline's and have dashes; an unknown one as it is."""
    name = word.strip().lower().replace("-", "_")
    name = PIPELINES.get(name, name)
    return name if name in TASKS else word


def modern(given: Mapping[str, Any]) -> dict[str, Any]:
    """A setup config's keys, or the command line's, in the newer words, with what one of them says of another.

    Raises ValueError in one line for an older word's unknown value, and where it contradicts a newer one.
    """
    found = dict(given)
    for key in ("task", "mode"):
        if isinstance(found.get(key), str):
            found[key] = task_named(found[key])
    for older, (names, table) in OLDER.items():
        value = found.pop(older, None)
        if value is None:
            continue
        if not isinstance(value, str) or value not in table:
            raise ValueError(f"{older}: {value!r} is none of {', '.join(table)}")
        for name, meant in zip(names, table[value], strict=True):
            if found.get(name) in _ALSO.get(meant, ()):
                continue
            if found.get(name) not in (None, meant):
                raise ValueError(
                    f"{older} {value} contradicts {name} {found[name]}; {older} is the older word for "
                    f"{' and '.join(names)}: leave it out"
                )
            found[name] = meant
    if found.get("format") == "transformers":
        found.setdefault("encoder", "stock")
    scheme = found.get("scheme")
    if isinstance(scheme, str) and scheme != "none" and scheme in SCHEMES:
        found.setdefault("compute", SCHEMES[scheme].compute[0])
    return found


def of_parent(given: Mapping[str, Any]) -> dict[str, Any]:
    """Adds encoder and format where only the parent example's ``save_mode`` and ``FasterTransformer`` say them."""
    save_mode, faster = given.get("save_mode"), given.get("FasterTransformer")
    if (save_mode is None and faster is None) or given.keys() & {"encoder", "format"}:
        return dict(given)
    kind = "ori" if save_mode == "pretrained" else "thsext" if faster in (True, "true", "True", 1) else "ths"
    return modern({**given, "kind": kind})


def kind_of(encoder: str, model_format: str) -> str:
    """ori, ths or thsext."""
    known = next((known for known, others in _ALSO.items() if model_format in others), model_format)
    return next(kind for kind, pair in KINDS.items() if pair == (encoder, known))


def data_type_of(compute: str, scheme: str) -> str:
    """Compute type and scheme in one word, as messages, logs and results print them."""
    return compute if scheme == "none" else scheme


def modern_facts(given: Mapping[str, Any]) -> dict[str, Any]:
    """The content of an archive.json of format 1 in the words of format 2; other content as it is."""
    if given.get("format", 1) != 1 or not given.keys() >= {"mode", "data_type"}:
        return dict(given)
    found = {"format": 1, **given}
    kind, data_type, sizes = (found.pop(key, None) for key in ("mode", "data_type", "encoder"))
    for name, value, table in (("mode", kind, KINDS), ("data_type", data_type, DATA_TYPES)):
        if not isinstance(value, str) or value not in table:
            raise ValueError(f"{name}: {value!r} is none of {', '.join(table)}")
    (encoder, model_format), (compute, scheme) = KINDS[kind], DATA_TYPES[data_type]
    found |= {"encoder": encoder, "sizes": sizes, "compute": compute, "scheme": scheme}
    found["model"] = {
        "format": model_format,
        "file": FILES[model_format],
        "devices": devices(encoder, scheme, _library_devices(found.get("libraries"))),
    }
    if isinstance(kept := found.get("quantisation"), Mapping) and "bf16" in kept:
        found["quantisation"] = {**{key: value for key, value in kept.items() if key != "bf16"}, "kept": kept["bf16"]}
    return found


def older_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of :func:`modern_facts`, for an archive whose own handler knows only those words."""
    found = dict(facts)
    model, sizes = found.pop("model"), found.pop("sizes")
    found["mode"] = kind_of(found["encoder"], model["format"])
    found["data_type"] = data_type_of(found.pop("compute"), found.pop("scheme"))
    found["encoder"] = sizes
    if "kept" in found["quantisation"]:
        found["quantisation"] = {**found["quantisation"], "bf16": found["quantisation"]["kept"]}
        del found["quantisation"]["kept"]
    return found


def devices(encoder: str, scheme: str, libraries: list[str]) -> list[str]:
    """On what an archive runs: with the fused encoder, where it has a library that the scheme has products in."""
    return [device for device in SCHEMES[scheme].devices if encoder == "stock" or device in libraries]


def _library_devices(libraries: Any) -> list[str]:
    """Of a content that is not validated yet."""
    values = libraries.values() if isinstance(libraries, Mapping) else ()
    return [value["device"] for value in values if isinstance(value, Mapping) and isinstance(value.get("device"), str)]
