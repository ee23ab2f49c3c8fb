"""A checkpoint's folder holds the checkpoint and nothing else: no way out of it, nothing that is no file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from builder.errors import BuildError
from builder.families.hub import MODEL_TYPES

_LARGEST = 256 << 20
"""Bytes of a file that is read as text; the largest tokenizers in use have 40 MB."""
_TEXTS = (".json", ".txt", ".model", ".jinja", ".md")
_BEGINNINGS = ("config.json", "modules.json", "adapter_config.json")
_INDICES = ("modules.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def refuse_foreign_files(folder: Path, source: str) -> None:
    """Raises BuildError where a file of a checkpoint's folder, at whatever depth, is not its own.

    A link would bring a file of the building machine into the archive. The Hugging Face cache, whose snapshots are
    links to its own blobs, is the exception: links from there into those blobs, and nowhere else, are followed.
    """
    if not any((folder / name).exists() for name in _BEGINNINGS):
        return  # no checkpoint, as its reader says; not a whole disk is to be walked
    _refuse_own_code(folder / "config.json", source)
    folder = folder.resolve()
    own = [folder, *_cache_blobs(folder)]
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _refuse_entry(Path(root) / name, own, source)
    for name in _INDICES:
        for path in _paths_named_in(folder / name):
            if not _within(folder / path, own):
                raise BuildError(f"{source}: {name} names {path!r}, which lies outside the checkpoint's folder")


def _refuse_own_code(config: Path, source: str) -> None:
    """transformers refuses it too (trust_remote_code=False), in more words."""
    from transformers import CONFIG_MAPPING

    facts = _content(config)
    kind = facts.get("model_type") if isinstance(facts, dict) else None
    if isinstance(facts, dict) and facts.get("auto_map") and kind not in CONFIG_MAPPING and kind not in MODEL_TYPES:
        raise BuildError(
            f"{source}: model_type {kind!r} needs the checkpoint's own code (auto_map), which is never run"
        )


def _content(path: Path) -> Any:
    """Of a JSON file; None where it is absent or damaged, which its reader says better."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _refuse_entry(path: Path, own: list[Path], source: str) -> None:
    shown = path.relative_to(own[0])
    if path.is_symlink() and not _within(path, own):
        raise BuildError(f"{source}: {shown} is a link out of the checkpoint's folder; put a copy in its place")
    try:
        facts = path.stat()
    except OSError as error:
        raise BuildError(f"{source}: {shown} cannot be read ({error.strerror})") from error
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        raise BuildError(f"{source}: {shown} is neither a file nor a folder; remove it")
    if path.suffix in _TEXTS and stat.S_ISREG(facts.st_mode) and facts.st_size > _LARGEST:
        size, most = facts.st_size >> 20, _LARGEST >> 20
        raise BuildError(f"{source}: {shown} has {size} MiB, more than the {most} that any tokenizer needs")


def _within(path: Path, places: list[Path]) -> bool:
    """Whether a path, all its links followed, ends in one of ``places``."""
    real = Path(os.path.realpath(path))  # Path.resolve raises on circles
    return any(real.is_relative_to(place) for place in places)


def _cache_blobs(folder: Path) -> list[Path]:
    """Where the links of a snapshot in the Hugging Face cache lead: models--ORG--NAME/blobs beside its snapshots."""
    snapshots, repository = folder.parent, folder.parent.parent
    if snapshots.name == "snapshots" and repository.name.startswith("models--"):
        return [repository / "blobs"]
    return []


def _paths_named_in(index: Path) -> list[str]:
    """The files and folders that a file of the folder names: a path in it may lead out as well as a link does."""
    content = _content(index)
    if isinstance(content, list):
        paths = [entry.get("path") for entry in content if isinstance(entry, dict)]
    else:
        shards = content.get("weight_map") if isinstance(content, dict) else None
        paths = list(shards.values()) if isinstance(shards, dict) else []
    return [path for path in paths if isinstance(path, str) and "\0" not in path]
