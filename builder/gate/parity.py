"""The parity gate: an archive's files, loaded as a worker loads them, against the untouched checkpoint.

The criterion is the one flash-attention's tests use: against a reference in float64, the archive's error may be at
most twice the error that plain PyTorch makes at the same type. Errors are root mean squares over all outputs of all
probes, so that the verdict does not hang on one unlucky number. int8, which plain PyTorch has not, is judged by cosines
(``builder.quantisation.int8``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from builder.checkpoint import Checkpoint, load
from builder.errors import BuildError
from builder.gate.probes import probes
from builder.gate.sentences import prove_sentences
from builder.gate.verdict import CosineVerdict
from builder.models import DTYPES, stock_model
from builder.quantisation.int8 import judge
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.packing import Model as ServedModel
from handler.runtime import TracedModel, load_model

ALLOWED_RATIO = 2.0
FLOOR = 2.0**-21
"""Relative error that passes in any case: four roundings of fp32, for checkpoints on which PyTorch errs by none."""

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

    def line(self) -> str:
        """The verdict in one line."""
        word = "passed" if self.passed else "FAILED"
        return (
            f"parity {word}: error {self.error:.2e}, plain PyTorch at the same type {self.plain_error:.2e} "
            f"(ratio {self.ratio:.2f}, allowed {ALLOWED_RATIO:g}); worst on {self.worst_probe}: {self.worst_error:.2e}"
        )


def compare(checkpoint: Checkpoint, candidate: Model, data_type: str, pooling: str | None) -> Verdict:
    """Run every probe through the candidate, plain PyTorch at ``data_type`` and float64."""
    reference = stock_model(checkpoint, torch.float64, pooling=pooling)
    plain = stock_model(checkpoint, DTYPES[data_type], pooling=pooling)
    totals = torch.zeros(3, dtype=torch.float64)
    worst = ("", -1.0)
    count = 0
    for name, inputs in probes(checkpoint):
        with torch.inference_mode():
            keep = inputs[2].bool() if checkpoint.task in _PER_TOKEN else None
            expected = _numbers(reference.double()(*inputs), keep)
            ours = _numbers(candidate(*inputs), keep)
            theirs = _numbers(plain(*inputs), keep)
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
    return Verdict(error, plain_error, ratio, worst[0], worst[1], count, passed)


def _numbers(outputs: tuple[Tensor, ...], keep: Tensor | None) -> Tensor:
    """All numbers of an answer as one float64 vector; ``keep`` [B, S] marks those that stand on valid tokens."""
    return torch.cat([(o if keep is None else o[keep]).reshape(-1).double() for o in outputs])


def prove(stage: Path, config: SetupConfig, calibrate: Path | None = None) -> Verdict | CosineVerdict:
    """Run the gate in a fresh process; ``calibrate`` are the texts an int8 archive was made with.

    Raises BuildError with the figures when it fails.
    """
    command = [sys.executable, "-m", "builder.gate.parity", str(stage), config.model_dump_json()]
    command += [] if calibrate is None else [str(calibrate)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"parity FAILED: the archive's files do not run ({last})")
    facts = json.loads(result.stdout.splitlines()[-1])
    if "refused" in facts:
        raise BuildError(f"{facts['refused']}; no archive was written")
    verdict = CosineVerdict(**facts) if config.data_type == "int8" else Verdict(**facts)
    if not verdict.passed:
        raise BuildError(f"{verdict.line()}; no archive was written")
    return verdict


def _on_tensors(model: ServedModel) -> Model:
    def run(ids: Tensor, segments: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(output) for output in model(ids.numpy(), segments.numpy(), mask.numpy()))

    return run


def _main(stage: str, config_json: str, calibrate: str | None = None) -> None:
    try:
        print(json.dumps(asdict(_verdict(stage, config_json, calibrate))))
    except BuildError as error:
        print(json.dumps({"refused": str(error)}))


def _verdict(stage: str, config_json: str, calibrate: str | None) -> Verdict | CosineVerdict:
    config = SetupConfig.model_validate_json(config_json)
    checkpoint = load(config)
    pooling = checkpoint.sentences.pooling if checkpoint.task == "embedding" else None
    folder = Path(stage)
    model = load_model(folder, ArchiveFacts.load(folder / "archive.json"), config)
    if isinstance(model, TracedModel) and config.data_type == "int8":
        verdict: Verdict | CosineVerdict = judge(
            checkpoint, model, pooling, None if calibrate is None else Path(calibrate)
        )
    else:
        verdict = compare(checkpoint, _on_tensors(model), config.data_type, pooling)
    if checkpoint.task in ("embedding", "rerank") and verdict.passed:
        prove_sentences(folder, checkpoint, config, model)
    return verdict


if __name__ == "__main__":
    _main(*sys.argv[1:])
