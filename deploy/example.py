"""A small request for an archive, by its task: what ``make serve`` shows and ``make predict`` sends."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

from handler.archive import ArchiveError, ArchiveFacts
from handler.canary import canary_request


def example(archive: Path) -> dict[str, Any] | None:
    """A request that the archive can answer, None for one that is none of this builder's."""
    try:
        with zipfile.ZipFile(archive) as packed:
            facts = ArchiveFacts.parse(packed.read("archive.json"))
            return canary_request(facts.task, _mask(packed, facts.mask_id))
    except (ArchiveError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile):
        return None


def _mask(packed: zipfile.ZipFile, mask_id: int | None) -> str:
    if mask_id is None:
        return ""
    added = json.loads(packed.read("tokenizer.json"))["added_tokens"]
    return next((str(token["content"]) for token in added if token["id"] == mask_id), "")


def curl(url: str, name: str, request: dict[str, Any] | None, file: Path | None) -> str:
    """A line for a shell that has the token in ``TOKEN``; what it sends is ``file``, or ``request``."""
    line = f'curl {url}/predictions/{name} -H "Authorization: Bearer $TOKEN"'
    if file is not None:
        return f"{line} -T {shlex.quote(str(file))}"
    if request is None:  # another's archive, whose requests only its maker knows
        return f"{line} -T FILE"
    return f"{line} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(request, ensure_ascii=False))}"
