"""What a run serves: a checkpoint, or a classifier of a published size, and the product's archives of it, built where
the store lacks them, each given its settings or tuned."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import archives, machine
from benchmarks.models import SIZES
from builder.inspection import read_facts
from builder.mar import replace_files
from builder.tune.workers import Setting, server_settings
from handler.config import SetupConfig
from handler.threads import available_cores

KINDS = ("ori", "ths", "thsext")
BATCH = {"ori": 2, "ths": 2, "thsext": 8}
"""Requests in a batch of archives that are not tuned: those that cost least processor time each (docs/cpu.md). Padded
encoders like them small, for pads cost them time; packed ones as large as their activations fit into the cache."""
_TUNING_SECONDS = 2.0
_LABELS = ("no", "yes")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def checkpoint(name: str, tokenizer: Path, folder: Path) -> Path:
    """``name`` itself where it is a folder, else a classifier of that size with random weights, made in ``folder``.

    ``tokenizer``: a BERT checkpoint's folder to take the tokenizer from. Random weights are right for time and
    say nothing of accuracy. Raises ValueError where ``name`` is neither.
    """
    if name not in SIZES:
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"no model in {name}; python -m samples build makes the sample, sizes: {', '.join(SIZES)}")
        return Path(name).resolve()
    import transformers

    target = folder / f"random-{name}"
    target.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    # Labels with names of their own are written down, and by them infinity tells a classifier from a reranker.
    config = transformers.BertConfig(**SIZES[name], id2label=dict(enumerate(_LABELS)))
    transformers.BertForSequenceClassification(config).save_pretrained(target)
    for file in _TOKENIZER_FILES:
        if (tokenizer / file).is_file():
            shutil.copyfile(tokenizer / file, target / file)
    return target.resolve()


def archive(server: str, model: Path, longest: int, threads: int, store: Path) -> Path:
    """The archive of a server (``KIND:TYPE``) in the store, built where it is not there yet, settled where it is not
    tuned."""
    kind, data_type = server.split(":")
    name = f"{model.name}-{kind}-{data_type}-{longest}"
    file = store / f"{name}.mar"
    if not file.is_file():
        settings = {"model_name": str(model), "name": name, "max_length": longest, "stride": 32}
        settings |= {"kind": kind, "data_type": data_type, "threads": threads}
        file = archives.build(SetupConfig.model_validate(settings), store)
    settle(file, kind)
    return file


def settle(file: Path, kind: str) -> None:
    """Give an archive that is not tuned a worker with one pinned thread on each core, and its kind's batches."""
    if read_facts(file).tuned:
        return
    settings = _settings(file)
    wanted = {**settings, **server_settings(Setting(available_cores(), 1, BATCH[kind], 1), pin=True)}
    if wanted != settings:
        replace_files(file, {"model-config.yaml": yaml.safe_dump(wanted, sort_keys=True).encode()})


def tune(files: dict[str, Path], texts: list[str], folder: Path, within: float | None = None) -> None:
    """By the builder's own command, as a user would, with the very texts that are measured; ``within``: for the most
    requests/s whose 95th percentile keeps this limit in milliseconds."""
    mix = folder / "mix.txt"
    mix.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for server, file in files.items():
        if read_facts(file).tuned:
            continue
        print(f"tuning {server}", file=sys.stderr)
        command = [sys.executable, "-m", "builder", "tune", str(file), "--mix", str(mix)]
        goal = ["throughput"] if within is None else ["p95", "--within", str(within)]
        command += ["--for", *goal, "--seconds", str(_TUNING_SECONDS)]
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or ["the builder failed"])[-1])
        print(done.stdout, file=sys.stderr)


def settings_of(file: Path) -> dict[str, Any]:
    """What decides an archive's speed, as a result keeps it."""
    settings = _settings(file)
    return {key: settings.get(key) for key in ("maxWorkers", "batchSize", "maxBatchDelay", "handler")}


def _settings(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as packed:
        return yaml.safe_load(packed.read("model-config.yaml"))
