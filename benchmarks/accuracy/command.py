"""Builds an archive of each kind and type, answers a public file with each, and scores the answers."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import archives, machine, results, table
from benchmarks.accuracy.datasets import READERS, Example, has_unanswerable
from benchmarks.accuracy.metrics import METRICS
from handler.config import SetupConfig
from handler.predictor import Predictor

_TASKS = {
    "squad": "question_answering",
    "mrpc": "sequence_classification",
    "sst2": "sequence_classification",
    "conll": "token_classification",
    "labels": "sequence_classification",
}
EIGHT_BITS = {"int8", "fp8"}
"""The types that only the fused encoder has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument(
        "--task",
        choices=(*READERS, "samples"),
        required=True,
        help="the file's format and the measure; samples: both sample models, their encoder's cosines, in every type",
    )
    parser.add_argument("--data", type=Path, help="such as dev-v1.1.json, MRPC's dev.tsv, eng.testb")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", help="a checkpoint's folder; archives of every kind and type are built from it")
    what.add_argument("--archive", type=Path, nargs="+", help="archives (.mar) as they are")
    parser.add_argument("--kinds", nargs="+", choices=("ori", "ths", "thsext"), default=["ori", "ths", "thsext"])
    parser.add_argument(
        "--types",
        nargs="+",
        choices=("fp32", "fp16", "bf16", "int8", "fp8"),
        help="default: fp32 and bf16; of samples all",
    )
    parser.add_argument("--batch", type=int, default=32, help="requests that reach the handler together")
    parser.add_argument("--limit", type=int, help="only the first so many examples")
    parser.add_argument("--max-length", type=int, default=384, help="longest sequence in tokens")
    parser.add_argument("--threads", type=int, default=machine.threads_available())
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    parser.add_argument(
        "--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu"], help="of samples: one, or both to compare"
    )
    parser.add_argument(
        "--store", type=Path, help="of samples: folder whose archives are used, and where others are kept"
    )
    parser.add_argument("--jobs", type=int, default=1, help="of samples: archives that are built at a time")


@dataclass
class Candidate:
    """One archive under test, its answers and the seconds they took."""

    kind: str
    data_type: str
    predictor: Predictor
    answers: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    if options.task == "samples":
        from benchmarks.accuracy import samples

        samples.run(options)
        return
    if options.data is None or not (options.model or options.archive):
        raise ValueError(f"--task {options.task} needs --data and one of --model and --archive")
    options.types = options.types or ["fp32", "bf16"]
    examples = READERS[options.task](options.data)[: options.limit]
    if options.model and set(options.types) <= EIGHT_BITS and "thsext" not in options.kinds:
        raise ValueError(f"only archives of kind thsext come in {' and '.join(options.types)}")
    if not examples:
        raise ValueError(f"{options.data.name} holds no example")
    with tempfile.TemporaryDirectory() as folder:
        candidates = _candidates(options, examples, Path(folder))
        answer(candidates, examples, options.batch)
    rows = [score(candidate, candidates[0], examples, options.task) for candidate in candidates]
    result = {
        **machine.facts("cpu", options.threads),
        "settings": {
            "task": options.task,
            "data": options.data.name,
            "examples": len(examples),
            "batch": options.batch,
        },
        "rows": rows,
    }
    path = results.save(f"accuracy-{options.task}", result, options.output)
    table.print_all(results.load(path))
    print(path)


def _candidates(options: argparse.Namespace, examples: list[Example], folder: Path) -> list[Candidate]:
    if options.archive:
        predictors = [archives.load(path, folder / str(i)) for i, path in enumerate(options.archive)]
        return [Candidate(p.facts.kind, p.facts.data_type, p) for p in predictors]
    found = []
    for data_type in options.types:
        for kind in [k for k in options.kinds if data_type not in EIGHT_BITS or k == "thsext"]:
            archive = archives.build(_config(options, examples, kind, data_type), folder)
            found.append(Candidate(kind, data_type, archives.load(archive, folder / archive.stem)))
    return found


def _config(options: argparse.Namespace, examples: list[Example], kind: str, data_type: str) -> SetupConfig:
    settings = {
        "model_name": str(Path(options.model).resolve()),
        "name": f"accuracy-{kind}-{data_type}",
        "task": _TASKS[options.task],
        "kind": kind,
        "data_type": data_type,
        "max_length": options.max_length,
        "stride": min(128, options.max_length // 3),
        "threads": options.threads,
        "null_answer": options.task == "squad" and has_unanswerable(examples),
    }
    return SetupConfig.model_validate(settings)


def answer(candidates: list[Candidate], examples: list[Example], batch: int) -> None:
    """Let every candidate answer every example, in turns batch by batch, each time in a new order, so that all meet the
    same machine.

    Raises ValueError for an example that a candidate refuses.
    """
    for start in range(0, len(examples), batch):
        rows = [{"body": example.payload} for example in examples[start : start + batch]]
        for candidate in random.sample(candidates, len(candidates)):
            if start == 0:
                candidate.predictor.predict(rows)  # first use allocates and tunes
            began = time.perf_counter()
            replies = candidate.predictor.predict(rows)
            candidate.seconds += time.perf_counter() - began
            for index, reply in enumerate(replies):
                if reply.status != 200:
                    raise ValueError(f"example {start + index}: {reply.payload['error']['message']}")
                candidate.answers.append(reply.payload)


def score(candidate: Candidate, baseline: Candidate, examples: list[Example], task: str) -> dict[str, Any]:
    """A result row: the measures, mean milliseconds per example, predictions that differ from the first candidate's."""
    labels = candidate.predictor.facts.labels
    decisions = [[decision(a) for a in c.answers] for c in (candidate, baseline)]
    return {
        "kind": candidate.kind,
        "data_type": candidate.data_type,
        **METRICS[task](examples, candidate.answers, labels),
        "ms_per_example": 1e3 * candidate.seconds / len(examples),
        "different_predictions": sum(one != other for one, other in zip(*decisions, strict=True)),
    }


def decision(answer: dict[str, Any]) -> Any:
    """What an answer decides, without its scores."""
    if "entities" in answer:
        return [(entity["label"], entity["start"], entity["end"]) for entity in answer["entities"]]
    return (answer["answer"], answer["start"]) if "answer" in answer else answer["label"]
