"""TorchServe's own ceiling: an archive whose handler does nothing, with the workers and batches of another one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

NAME = "empty"


def build(beside: Path, folder: Path, workers: int | None = None) -> Path:
    """Pack the empty handler into ``folder``; workers, batch and delay are those of the archive ``beside``.

    ``workers``: as many instead. Raises ValueError with the archiver's last line.
    """
    with zipfile.ZipFile(beside) as packed:
        settings = yaml.safe_load(packed.read("model-config.yaml"))
    settings.pop("handler", None)
    if workers:
        settings |= {"minWorkers": workers, "maxWorkers": workers}
    scratch = folder / "scratch-empty"
    scratch.mkdir(parents=True, exist_ok=True)
    config = scratch / "model-config.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=True), encoding="utf-8")
    command = [
        sys.executable, "-m", "model_archiver.model_packaging", "--model-name", NAME, "--version", "1.0",
        "--handler", str(Path(__file__).with_name("empty_handler.py")), "--config-file", str(config),
        "--export-path", str(folder), "--archive-format", "zip-store", "--force",
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["torch-model-archiver failed"])[-1])
    return folder / f"{NAME}.mar"
