"""The parity gate: an archive's files, loaded as a worker loads them, against the untouched checkpoint.

The criterion is the one flash-attention's tests use: against a reference in float64, the archive's error may be at
most twice the error that plain PyTorch makes at the same type. Errors are root mean squares over all outputs of all
probes, so that the verdict does not hang on one unlucky number. int8, which plain PyTorch has not, is judged by cosines
(``builder.quantisation.int8``).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builder.checkpoint import Checkpoint, load
from builder.errors import BuildError
from builder.gate.answers import prove_answers
from builder.gate.probes import probes
from builder.gate.sentences import prove_sentences
from builder.gate.texts import ODD, special_texts
from builder.gate.verdict import CosineVerdict
from builder.models import DTYPES, stock_model
from builder.quantisation.int8 import judge
from handler.archive import ArchiveError, ArchiveFacts
from handler.config import SetupConfig
from handler.packing import Model as ServedModel
from handler.runtime import TracedModel, fits, load_model

ALLOWED_RATIO = 2.0
FLOOR = 2.0**-21
"""Relative error that passes in any case: four roundings of fp32, for checkpoints on which PyTorch errs by none."""

_REFUSED = 3
"""The fresh process's exit status where it can say in one line what is wrong."""
_PER_TOKEN = ("question_answering", "token_classification", "fill_mask")

Model = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Verdict:
    """Relative root-mean-square errors against float64, and the probe on which the archive did worst."""

    error: float
    plain_error: float
    ratio: float
    worst_probe: str
    worst_error: float
    probes: int
    passed: bool
    device: str = "cpu"
    requests: int = 0
    """Answered as transformers answers them, end to end."""
    on_gpu: dict[str, Any] | None = None
    """The same figures of the CUDA library, where the builder's machine has a GPU that it runs on."""

    def line(self) -> str:
        """The verdict in one line."""
        word = "passed" if self.passed else "FAILED"
        where = "" if self.device == "cpu" else f" on {self.device}"
        asked = f"; {self.requests} requests answered as transformers does" if self.requests else ""
        return (
            f"parity {word}{where}: error {self.error:.2e}, plain PyTorch at the same type {self.plain_error:.2e} "
            f"(ratio {self.ratio:.2f}, allowed {ALLOWED_RATIO:g}); worst on {self.worst_probe}: {self.worst_error:.2e}"
            f"{asked}"
        ) + ("" if self.on_gpu is None else f"; {Verdict(**self.on_gpu).line()}")


def compare(
    checkpoint: Checkpoint, candidate: Model, data_type: str, pooling: str | None, device: str = "cpu"
) -> Verdict:
    """Run every probe through the candidate, plain PyTorch at ``data_type`` on ``device``, and float64 on the CPU."""
    reference = stock_model(checkpoint, torch.float64, pooling=pooling)
    plain = stock_model(checkpoint, DTYPES[data_type], pooling=pooling).to(device)
    totals = torch.zeros(3, dtype=torch.float64)
    worst = ("", -1.0)
    count = 0
    for name, inputs in probes(checkpoint):
        with torch.inference_mode():
            keep = inputs[2].bool() if checkpoint.task in _PER_TOKEN else None
            expected = _numbers(reference.double()(*inputs), keep)
            ours = _numbers(candidate(*inputs), keep)
            theirs = _numbers(tuple(output.cpu() for output in plain(*(x.to(device) for x in inputs))), keep)
        if ours.shape != expected.shape:
            raise BuildError(f"parity FAILED on {name}: {ours.numel()} outputs, expected {expected.numel()}")
        squares = torch.stack([(ours - expected).square().sum(), (theirs - expected).square().sum()])
        scale = expected.square().sum()
        totals += torch.cat([squares, scale[None]])
        relative = float((squares[0] / scale).sqrt())
        if not relative <= worst[1]:
            worst = (name, relative)
        count += 1
    error, plain_error = (float((total / totals[2]).sqrt()) for total in totals[:2])
    passed = error <= max(ALLOWED_RATIO * plain_error, FLOOR)
    ratio = error / plain_error if plain_error else float("inf") if error else 1.0
    return Verdict(error, plain_error, ratio, worst[0], worst[1], count, passed, device)


def _numbers(outputs: tuple[Tensor, ...], keep: Tensor | None) -> Tensor:
    """All numbers of an answer as one float64 vector; ``keep`` [B, S] marks those that stand on valid tokens."""
    return torch.cat([(o if keep is None else o[keep]).reshape(-1).double() for o in outputs])


def prove(stage: Path, config: SetupConfig, calibrate: Path | None = None) -> Verdict | CosineVerdict:
    """Run the gate in a fresh process; ``calibrate`` are the texts an int8 archive was made with.

    Raises BuildError with the figures, or with the first request that is answered otherwise, when it fails.
    """
    command = [sys.executable, "-m", "builder.gate.parity", str(stage), config.model_dump_json()]
    command += [] if calibrate is None else [str(calibrate)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(_failure(result))
    facts = json.loads(result.stdout.splitlines()[-1])
    verdict = CosineVerdict(**facts) if config.data_type == "int8" else Verdict(**facts)
    if not verdict.passed:
        raise BuildError(f"{verdict.line()}; no archive was written")
    return verdict


def _failure(result: subprocess.CompletedProcess[str]) -> str:
    """Why the fresh process ended: its own line, or the signal that the kernels or the system sent it."""
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    if result.returncode == _REFUSED:
        return last
    if result.returncode < 0:
        last = f"the process was ended by {signal.Signals(-result.returncode).name}"
    return f"parity FAILED: the archive's files do not run ({last}); no archive was written"


def _on_tensors(model: ServedModel) -> Model:
    def run(ids: Tensor, segments: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(output) for output in model(ids.numpy(), segments.numpy(), mask.numpy()))

    return run


def judge_stage(stage: Path, config: SetupConfig, calibrate: Path | None = None) -> Verdict | CosineVerdict:
    """All of the gate: the figures on each device that the archive can run on here, then the answers."""
    checkpoint = load(config)
    facts = ArchiveFacts.load(stage / "archive.json")
    pooling = checkpoint.sentences.pooling if checkpoint.task == "embedding" else None
    model = load_model(stage, facts, config)
    if isinstance(model, TracedModel) and config.data_type == "int8":
        verdict: Verdict | CosineVerdict = judge(checkpoint, model, pooling, calibrate)
    else:
        verdict = compare(checkpoint, _on_tensors(model), config.data_type, pooling)
    if not verdict.passed:
        return verdict
    if isinstance(verdict, Verdict) and (device := gpu_of(facts)) is not None:
        there = _on_gpu(stage, config, facts, checkpoint, pooling, device)
        if not there.passed:
            return there
        verdict = replace(verdict, on_gpu=asdict(there))
    if checkpoint.task not in ("embedding", "rerank"):
        return replace(verdict, requests=prove_answers(stage, checkpoint, config, model))
    prove_sentences(stage, checkpoint, config, model, [*ODD, *special_texts(checkpoint.tokenizer)])
    return verdict


def _on_gpu(
    stage: Path, config: SetupConfig, facts: ArchiveFacts, checkpoint: Checkpoint, pooling: str | None, device: int
) -> Verdict:
    """The probes through the archive's CUDA library; plain PyTorch computes on that GPU too."""
    model = load_model(stage, facts, config.model_copy(update={"cpu_fallback": False}), device)
    return compare(checkpoint, _on_tensors(model), config.data_type, pooling, f"cuda:{device}")


def gpu_of(facts: ArchiveFacts) -> int | None:
    """The index of a GPU here for which the archive carries a library; None where there is none."""
    targets = [target for library in facts.libraries.values() if library.device == "cuda" for target in library.targets]
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if fits(torch.cuda.get_device_capability(device), targets):
            return device
    return None


def _main(stage: str, config_json: str, calibrate: str | None = None) -> int:
    config = SetupConfig.model_validate_json(config_json)
    try:
        verdict = judge_stage(Path(stage), config, None if calibrate is None else Path(calibrate))
    except (BuildError, ArchiveError) as error:
        print(error, file=sys.stderr)
        return _REFUSED
    print(json.dumps(asdict(verdict)))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
