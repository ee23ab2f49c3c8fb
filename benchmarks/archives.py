"""Archives for measurements: built by the builder's own command, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.machine import ROOT
from handler.config import SetupConfig
from handler.predictor import Predictor


def build(config: SetupConfig, folder: Path) -> Path:
    """Build an archive into ``folder``. Raises ValueError with the builder's last line.

    The builder's process may load the kernels, which a measuring process gets from the archive: two copies of one
    operator library in one process are one too many.
    """
    print(f"building {config.kind} {config.data_type}", file=sys.stderr)
    file = folder / f"{config.name}.json"
    file.write_text(config.model_dump_json(exclude_unset=True), encoding="utf-8")
    command = [sys.executable, "-m", "builder", "archive", str(file), "--device", "cpu", "--output", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError((result.stderr.strip().splitlines() or ["the builder failed"])[-1])
    return Path(result.stdout.splitlines()[-1])


def load(archive: Path, folder: Path) -> Predictor:
    """Extract an archive into ``folder`` and load it as a worker does."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return Predictor.load(folder)


def tokenizer(archive: Path, folder: Path) -> Path:
    """An archive's ``tokenizer.json``, extracted into ``folder``."""
    with zipfile.ZipFile(archive) as packed:
        return Path(packed.extract("tokenizer.json", folder))
