"""``builder export-native``: an archive's model as a plain folder, ``weights.safetensors`` and ``spec.json``.

The archive itself holds no such files: they would carry every weight a second time. They are made of the model's own
buffers, which are the same tensors, so any archive with a fused encoder can be exported, older ones too. The
folder is proved against the archive's model before it gets its name.
"""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from builder import ops
from builder.errors import BuildError
from builder.inspection import read_facts
from builder.native.binding import Model, NativeError
from builder.native.graph import Graph, Step, read_graph
from builder.native.library import compile_native
from builder.staging import staging
from handler.archive import ArchiveFacts
from handler.formats import load_file

FORMAT = "efft-native/1"
SPEC, WEIGHTS = "spec.json", "weights.safetensors"
_LENGTHS = (7, 1, 12)
"""Of the sequences that a folder is proved on."""
_TOLERANCE = 2e-5
"""Of logits beside the largest: the encoder's results are the same, but the head's sums are taken in another order."""
_ROUNDED = 2e-2
"""The same of a head that the archive computes in 16 bits: the folder's rounds nothing."""


def export_native(archive: Path, target: Path) -> Graph:
    """Write the folder ``target``, which must be empty or absent. Raises BuildError; then there is none."""
    facts = read_facts(archive)
    if facts.encoder != "fused":
        raise BuildError(f"{archive.name} holds a stock encoder; only fused ones (kind thsext) run without torch")
    if facts.adapters:
        raise BuildError(f"{archive.name} has several adapters; build an archive of the one that is wanted")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BuildError(f"{target} exists; name a folder that does not")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging(target.parent, target.name) as temporary:
            folder = temporary / "native"
            folder.mkdir()
            graph = _write(archive, facts, temporary, folder)
            if target.exists():
                target.rmdir()
            folder.replace(target)
    except OSError as error:
        raise BuildError(f"{error.filename or target}: {error.strerror or error}") from error
    return graph


def _write(archive: Path, facts: ArchiveFacts, temporary: Path, folder: Path) -> Graph:
    ops.ensure_loaded()
    with _undisturbed():
        module = load_file(_unpacked(archive, facts, temporary), facts.model.format, torch.device("cpu"))
        vocabulary = _vocabulary(module)
        graph = read_graph(module, vocabulary, min(4, facts.max_positions))
        if graph is None:
            raise BuildError(f"{archive.name}: its model calls no fused encoder; build it again")
        graph = _with_normalisation(graph, facts)
        tensors, spec = _described(graph, facts)
        save_file(tensors, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # its writer lets nobody else read it
        (folder / SPEC).write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _prove(module, graph, facts, folder, vocabulary)
    return graph


def _unpacked(archive: Path, facts: ArchiveFacts, folder: Path) -> Path:
    """The model's file, checked against its digest where the archive has digests."""
    path = folder / facts.model.file
    found = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as packed, packed.open(facts.model.file) as source, path.open("wb") as sink:
            while block := source.read(2**20):
                found.update(block)
                sink.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BuildError(f"{archive.name}: {facts.model.file} is missing or damaged; build it again") from error
    if facts.files.get(facts.model.file, found.hexdigest()) != found.hexdigest():
        raise BuildError(f"{archive.name}: {facts.model.file} is not the file it was built with; build it again")
    return path


def _vocabulary(module: Any) -> int:
    rows = next((len(t) for name, t in module.named_buffers() if name.endswith("encoder.word")), None)
    if rows is None:
        raise BuildError("the model has no table of words by the name encoder.word; build the archive again")
    return rows


def _with_normalisation(graph: Graph, facts: ArchiveFacts) -> Graph:
    """An embedding is brought to length 1 by the worker, not by the model."""
    if graph.head is None or not facts.normalize or facts.task != "embedding":
        return graph
    return Graph(graph.weights, graph.spec, graph.reads, (*graph.head, Step("normalize")))


def _described(graph: Graph, facts: ArchiveFacts) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and what spec.json says of them."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in graph.weights.items()}
    head: list[dict[str, Any]] | None = None if graph.head is None else []
    for number, step in enumerate(graph.head or ()):
        names = {key: f"head.{number}.{key}" for key in step.tensors}
        tensors |= {names[key]: tensor.contiguous().clone() for key, tensor in step.tensors.items()}
        assert head is not None
        head.append({"op": step.op, **names, **step.numbers})
    spec = {
        "format": FORMAT,
        "name": facts.name,
        "task": facts.task,
        "labels": list(facts.labels),
        "compute": facts.scheme if facts.scheme != "none" else facts.compute,
        "encoder": graph.spec,
        "reads": graph.reads,
        "max_tokens": facts.max_positions,
        "head": head,
    }
    return tensors, spec


def _prove(module: Any, graph: Graph, facts: ArchiveFacts, folder: Path, vocabulary: int) -> None:
    """Raises BuildError where the library does not give with the folder what the archive's model gives."""
    chance = random.Random(5)
    lengths = [min(length, facts.max_positions) for length in _LENGTHS]
    rows = [[chance.randrange(vocabulary) for _ in range(length)] for length in lengths]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (values, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[row, :length] = torch.tensor(values)
        mask[row, :length] = 1
    valid = mask.bool()
    try:
        with Model(compile_native(), folder, threads=1) as model, torch.no_grad():
            encode = torch.ops.efft.encode
            weights = list(graph.weights.values())
            hidden = encode(ids, torch.zeros_like(ids), mask, weights, graph.spec, "hidden").float()[valid].numpy()
            _equal("hidden states", model.encode(rows, "hidden"), hidden, _TOLERANCE)
            if graph.head is None:
                return
            made = module(ids, torch.zeros_like(ids), mask)
            outputs = made if isinstance(made, tuple) else (made,)
            joined = torch.stack(outputs, -1) if len(outputs) > 1 else outputs[0]
            logits = (joined[valid] if model.info.per_token else joined).float()
            if facts.normalize and facts.task == "embedding":
                logits = torch.nn.functional.normalize(logits, dim=-1)
            rounds = any(t.dtype != torch.float32 for step in graph.head for t in step.tensors.values())
            _equal("results", model.encode(rows, "logits"), logits.numpy(), _ROUNDED if rounds else _TOLERANCE)
    except NativeError as error:
        raise BuildError(f"the exported folder does not run: {error}") from error


def _equal(what: str, got: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    if got.shape != wanted.shape:
        raise BuildError(f"the exported folder gives {what} of shape {got.shape}, the archive {wanted.shape}")
    error = float(np.abs(got - wanted).max(initial=0) / max(1e-9, np.abs(wanted).max(initial=0)))
    if not error <= tolerance:
        raise BuildError(f"the exported folder's {what} differ from the archive's by {error:.1e} of the largest")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """On one thread, so that both sides cut their work into the same pieces."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
