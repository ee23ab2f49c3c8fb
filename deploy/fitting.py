"""What a machine makes of archives that were not tuned on it: workers for its GPUs, or the offer to tune."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from builder.serving import default_workers, gpus, processor
from deploy.server import Server, ServerError
from handler.archive import ArchiveError, ArchiveFacts
from handler.config import ConfigError
from handler.threads import available_cores, read_server_settings
from handler.transfer import WAIT

_PATIENCE = 400.0
"""Seconds for new workers to load."""


def prepare() -> None:
    """Before a server starts that :func:`fit` may give more workers than its archives say: on GPUs they are to sleep
    while they wait, as several of an archive's own number do."""
    if gpus():
        os.environ.setdefault(WAIT, "block")


def fit(server: Server, models: Sequence[str]) -> list[str]:
    """Give a running server's archives the workers that this machine has room for; a line for what was done or may be.

    An archive built where there was no GPU has one worker: where there are some it gets as many as the builder would
    have chosen here. What was tuned, or has another number in its settings, stays as it is.
    """
    lines = []
    for name in models:
        archive = server.store / f"{name}.mar"
        try:
            facts, settings = read(archive)
        except (ArchiveError, ConfigError, KeyError, OSError, zipfile.BadZipFile):
            continue  # another's archive, which TorchServe serves as well
        line = offer(facts, archive)
        if line is None:
            continue
        wanted = default_workers("cuda" in facts.model.devices, available_cores(), gpus())
        workers = settings.get("maxWorkers", 1)
        if wanted > workers == 1:
            scale(server, name, wanted)
            line = f"{name}: {wanted} workers for this machine's GPUs; {line}"
        lines.append(line)
    return lines


def read(archive: Path) -> tuple[ArchiveFacts, dict[str, Any]]:
    """What an archive says of itself and of its server, not by the builder: that needs more packages than a server has.

    Raises ArchiveError, ConfigError, KeyError, OSError or BadZipFile for one that is none of ours.
    """
    with zipfile.ZipFile(archive) as packed:
        return ArchiveFacts.parse(packed.read("archive.json")), read_server_settings(archive)


def offer(facts: ArchiveFacts, archive: Path) -> str | None:
    """How to tune an archive, None where it was tuned on this processor."""
    command = f"python -m builder tune {archive.parent.name}/{archive.name}"
    if not facts.tuned:
        return f"{facts.name} is not tuned; stop the server and measure its best workers with: {command}"
    if facts.tuned.get("processor") != processor():
        return f"{facts.name} was tuned on another machine ({facts.tuned.get('processor')}); again with: {command}"
    return None


def scale(server: Server, model: str, workers: int) -> None:
    """Set a model's number of workers and wait until they are there. Raises ServerError."""
    url = f"http://127.0.0.1:{server.ports[1]}/models/{model}"
    asked = {"min_worker": workers, "max_worker": workers, "synchronous": "true"}
    answer = requests.put(url, params=asked, headers=server.headers("management"), timeout=_PATIENCE)
    if not answer.ok:
        raise ServerError(f"{model} cannot have {workers} workers: {' '.join(answer.text.split())[:200]}")
