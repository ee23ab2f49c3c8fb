"""Read an archive without loading its model: what ``builder inspect`` prints."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from builder.errors import BuildError
from builder.files import first_line
from builder.gate.verdict import recorded
from builder.quantisation.schemes import RECIPES
from handler.archive import ArchiveFacts
from handler.config import first_problem


def read_facts(path: Path) -> ArchiveFacts:
    """``archive.json`` of a ``.mar``. Raises BuildError when the file is none of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            return ArchiveFacts.model_validate(json.loads(archive.read("archive.json")))
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise BuildError(f"{str(path)!r}: {reason}") from error
    except ValidationError as error:
        raise BuildError(f"{path.name} is not an archive made by this builder ({first_problem(error)})") from error
    except Exception as error:  # whatever a damaged zip makes the library raise
        raise BuildError(f"{path.name} is not an archive made by this builder ({first_line(error)})") from error


def describe(path: Path) -> Iterator[str]:
    """The archive's facts, a line each."""
    facts = read_facts(path)
    e = facts.sizes
    yield f"archive     {path.name}, {path.stat().st_size / 2**20:.1f} MiB, format {facts.format}"
    yield f"checkpoint  {facts.checkpoint.get('name')} (weights sha256 {str(facts.checkpoint.get('sha256'))[:16]})"
    yield f"task        {facts.task}" + (f", {facts.problem_type}" if facts.problem_type else "")
    if facts.labels:
        yield f"labels      {', '.join(facts.labels)}"
    if facts.adapters:
        yield f"adapters    {', '.join(facts.adapters)}; default: {facts.adapters[0]}"
    if facts.pooling:
        yield f"pooling     {facts.pooling}{', normalised' if facts.normalize else ''}"
    if named := [name for name, text in facts.prompts.items() if text]:
        yield f"prompts     {', '.join(named)}; default: {facts.default_prompt_name or 'none'}"
    if facts.activation:
        yield f"score       {facts.activation} of the logit"
    kind, form = facts.kind, facts.model.format
    yield f"model       {facts.family}, {facts.encoder} encoder (kind {kind}), {facts.data_type}, {form}"
    yield f"encoder     {e.layers} layers, hidden {e.hidden}, {e.heads} heads, intermediate {e.intermediate}"
    yield f"longest     {facts.max_positions} tokens"
    yield f"torch       built with {facts.torch.built}, loads from {facts.torch.oldest} on"
    for name, library in sorted(facts.libraries.items()):
        yield f"library     {name}: {library.device} ({', '.join(library.targets)}), sha256 {library.sha256[:16]}"
    if q := facts.quantisation:
        which = f": {', '.join(q['kept'])}" if q["kept"] else ""
        line = f"{len(q['kept'])} of {q['matrices']} matrices in {facts.compute}{which}"
        yield f"{facts.scheme:<11} {line}; chosen on {q['calibrated_on']}"
    if facts.parity:
        yield f"parity      {recorded(RECIPES[facts.scheme].judged_by, facts.parity).figures()}"
