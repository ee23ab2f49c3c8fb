"""Several adapters over one base in one archive, of which each request chooses one.

Each is merged, written and proven as an archive of its own; what the others add to the first one's archive is their
model and what is said of it. A worker holds tensors that are equal once (``handler.formats.weights.share``). Low-rank
terms that stay unmerged would have to be added to every product of every engine in every type, and would cost each pass
something; merged, only passes pay that a small share of a batch is left for (docs/archives.md has the figures).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from builder.checkpoint import Checkpoint, load
from builder.errors import BuildError
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.integrity import sha256
from handler.runtime import ADAPTERS

_ALIKE = (
    "task", "family", "encoder", "compute", "scheme", "encoder_spec", "max_positions", "uses_segments", "pad_id",
    "mask_id", "truncation_side", "include_prompt", "outputs",
)  # fmt: skip
"""What is read off the archive once for all adapters."""

Staged = Callable[[Path, SetupConfig, Checkpoint], ArchiveFacts]
"""Writes all files of one adapter's archive into an empty folder, proves them, and says what they are."""


def split(config: SetupConfig) -> tuple[SetupConfig, dict[str, SetupConfig]]:
    """The config of the first adapter, and those of the others by their names; of an archive without, itself."""
    each = {
        name: config.model_copy(update={"adapter": folder, "adapters": {}}) for name, folder in config.adapters.items()
    }
    if not each:
        return config, {}
    first = next(iter(each))
    return each.pop(first), each


def read(others: Mapping[str, SetupConfig], first: Checkpoint) -> dict[str, Checkpoint]:
    """Their checkpoints by name. Raises BuildError where one cannot be read, or is for another task."""
    found = {}
    for name, config in others.items():
        with _named(name):
            found[name] = own = load(config)
        if own.task != first.task:
            raise BuildError(f"adapter {name}: it is for {own.task}, the first one for {first.task}; archive it apart")
    return found


def add(
    stage: Path,
    facts: ArchiveFacts,
    others: Mapping[str, SetupConfig],
    checkpoints: Mapping[str, Checkpoint],
    staged: Staged,
) -> None:
    """Put the other adapters beside the first one, whose proven archive ``stage`` holds and ``facts`` describe.

    Raises BuildError where one is of another kind than the first, or fails its proof.
    """
    for name, config in others.items():
        own_stage = stage.parent / f"adapter-{name}"
        own_stage.mkdir()
        with _named(name):
            own = staged(own_stage, config, checkpoints[name])
        _check_alike(name, facts, own)
        if sha256(stage / "tokenizer.json") != sha256(own_stage / "tokenizer.json"):
            raise BuildError(f"adapter {name}: its tokenizer is another than the first one's; archive it apart")
        target = stage / ADAPTERS / name
        target.mkdir(parents=True)
        shutil.move(own_stage / own.model.file, target / own.model.file)
        own.save(target / "archive.json")
        shutil.rmtree(own_stage)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Puts an adapter's name before what is wrong with it."""
    try:
        yield
    except BuildError as error:
        raise BuildError(f"adapter {name}: {error}") from error


def _check_alike(name: str, first: ArchiveFacts, own: ArchiveFacts) -> None:
    for key in _ALIKE:
        found, expected = getattr(own, key), getattr(first, key)
        if found != expected:
            raise BuildError(f"adapter {name}: {key} is {found!r}, the first adapter's {expected!r}; archive it apart")
