"""The parity gate: an archive's files, loaded as a worker loads them, against the untouched checkpoint.

How it is judged is for its quantisation scheme to say (``builder.quantisation.schemes``): by its error
(``builder.gate.compare``), or by cosines where plain PyTorch has no such type.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from builder.checkpoint import Checkpoint, load
from builder.errors import BuildError
from builder.gate.answers import prove_answers
from builder.gate.compare import compare, on_tensors
from builder.gate.constants import archived, constants_need_proof, prove_constants
from builder.gate.sentences import prove_sentences
from builder.gate.texts import ODD, special_texts
from builder.gate.verdict import VERDICTS, CosineVerdict, Verdict
from builder.quantisation.schemes import RECIPES
from handler.archive import ArchiveError, ArchiveFacts
from handler.config import SetupConfig
from handler.runtime import fits, load_model


class Refused(BuildError):
    """The files run, but their figures are not good enough; an 8-bit archive may have better ones."""


_REFUSED = 3
"""The fresh process's exit status where it can say in one line what is wrong."""


def prove(stage: Path, config: SetupConfig, calibrate: Path | None = None) -> Verdict | CosineVerdict:
    """Run the gate in a fresh process; ``calibrate`` are the texts that a quantised archive was made with.

    Raises Refused with the figures, or BuildError with the first request that is answered otherwise, when it fails.
    """
    command = [sys.executable, "-m", "builder.gate.parity", str(stage), config.model_dump_json()]
    command += [] if calibrate is None else [str(calibrate)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(_failure(result))
    facts = json.loads(result.stdout.splitlines()[-1])
    verdict = VERDICTS[RECIPES[config.scheme].judged_by](**facts)
    if not verdict.passed:
        raise Refused(f"{verdict.line()}; no archive was written")
    return verdict


def _failure(result: subprocess.CompletedProcess[str]) -> str:
    """Why the fresh process ended: its own line, or the signal that the kernels or the system sent it."""
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    if result.returncode == _REFUSED:
        return last
    if result.returncode < 0:
        last = f"the process was ended by {signal.Signals(-result.returncode).name}"
    return f"parity FAILED: the archive's files do not run ({last}); no archive was written"


def judge_stage(stage: Path, config: SetupConfig, calibrate: Path | None = None) -> Verdict | CosineVerdict:
    """All of the gate: the figures on each device that the archive can run on here, then the answers."""
    checkpoint = load(config)
    facts = ArchiveFacts.load(stage / "archive.json")
    pooling = checkpoint.sentences.pooling if checkpoint.task in ("embedding", "hybrid_embedding") else None
    model = load_model(stage, facts, config)
    verdict = RECIPES[config.scheme].judge(checkpoint, model, config.compute, pooling, calibrate, facts.quantisation)
    if not verdict.passed:
        return verdict
    if facts.encoder == "fused" and constants_need_proof(facts):
        prove_constants(checkpoint, *archived(model, facts), pooling)
    if (device := gpu_of(facts)) is not None:
        there = _on_gpu(stage, config, facts, checkpoint, pooling, calibrate, device)
        if not there.passed:
            return there
        verdict = replace(verdict, on_gpu=asdict(there))
    if not checkpoint.prompted:
        return replace(verdict, requests=prove_answers(stage, checkpoint, config, model))
    prove_sentences(stage, checkpoint, config, model, [*ODD, *special_texts(checkpoint.tokenizer)])
    return verdict


def _on_gpu(
    stage: Path,
    config: SetupConfig,
    facts: ArchiveFacts,
    checkpoint: Checkpoint,
    pooling: str | None,
    calibrate: Path | None,
    device: int,
) -> Verdict | CosineVerdict:
    """The probes through the archive's CUDA library; plain PyTorch computes on that GPU too."""
    model = load_model(stage, facts, config.model_copy(update={"cpu_fallback": False}), device)
    recipe = RECIPES[config.scheme]
    if recipe.judged_by == "cosine":
        return recipe.judge(checkpoint, model, config.compute, pooling, calibrate, facts.quantisation)
    return compare(checkpoint, on_tensors(model, checkpoint), config.compute, pooling, f"cuda:{device}")


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
