"""Archives for measurements: built by the builder, in a process of its own.

``python -m benchmarks.archives CONFIG FOLDER`` builds one with the CUDA library of this machine's GPU beside the CPU's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.machine import ROOT
from handler.config import SetupConfig
from handler.predictor import Predictor


def build(config: SetupConfig, folder: Path, *, gpu: bool = False, threads: int | None = None) -> Path:
    """Build an archive into ``folder``, with ``gpu`` for this machine's GPU too. Raises ValueError with the builder's
    last line.

    The builder's process may load the kernels, which a measuring process gets from the archive: two copies of one
    operator library in one process are one too many.
    """
    print(f"building {config.kind} {config.data_type}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{config.name}.json"
    file.write_text(config.model_dump_json(exclude_unset=True), encoding="utf-8")
    command = [sys.executable, "-m", "builder", "archive", str(file), "--device", "cpu", "--output", str(folder)]
    if gpu:  # the builder's own command compiles for every chip
        command = [sys.executable, "-m", "benchmarks.archives", str(file), str(folder)]
    environment = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
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


def _main(config: Path, folder: Path) -> None:
    from benchmarks import libraries
    from builder.archive import build as build_archive
    from builder.errors import BuildError

    try:
        path, verdict = build_archive(SetupConfig.load(config), libraries.carried("cuda"), folder, lambda _step: None)
    except BuildError as error:
        sys.exit(str(error))
    print(verdict.line())
    print(path)


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
