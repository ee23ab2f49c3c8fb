"""The archive that serves a checkpoint without this product: ``plain_handler`` and the checkpoint's files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks.serving.prepare import BATCH
from builder.tune.workers import Setting, server_settings
from handler.threads import available_cores

TORCH_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What torch and transformers call the types."""


def build(model: Path, data_type: str, longest: int, folder: Path) -> Path:
    """Pack a checkpoint's folder with torch-model-archiver; returns the archive's path in ``folder``.

    It is served as ``ori`` is: a worker with one thread on each core, the same batches. Raises ValueError with the
    archiver's last line.
    """
    name = f"{model.name}-plain-{data_type}-{longest}"
    settings = server_settings(Setting(available_cores(), 1, BATCH["ori"], 1), pin=False)
    settings["handler"] = {"threads": 1, "max_length": longest, "data_type": TORCH_TYPES[data_type]}
    scratch = folder / name
    scratch.mkdir()
    config = scratch / "model-config.yaml"
    config.write_text(yaml.safe_dump({**settings, "startupTimeout": 300}, sort_keys=True), encoding="utf-8")
    command = [
        sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name, "--version", "1.0",
        "--handler", str(Path(__file__).with_name("plain_handler.py")), "--config-file", str(config),
        "--extra-files", str(model), "--export-path", str(folder), "--archive-format", "zip-store",
    ]  # fmt: skip
    # The archiver stages under the temporary folder's NAME, which another run may be using.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise ValueError((result.stderr.strip().splitlines() or ["torch-model-archiver failed"])[-1])
    return folder / f"{name}.mar"
