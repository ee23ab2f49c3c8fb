"""``--task samples``: what each type costs, on one device or on two.

Both sample models answer their dev inputs from archives of every type, and the encoder that both start from is held
against the checkpoint in fp32 by the cosines of the builder's gate. With two devices each archive is opened on both,
and what the second answers otherwise is counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import archives, machine, results, table
from benchmarks.accuracy.command import decision
from benchmarks.accuracy.datasets import Example, read_labels, read_squad
from benchmarks.accuracy.metrics import METRICS
from handler.config import SetupConfig
from handler.engine import Engine
from handler.errors import RequestError
from handler.integrity import stream_sha256
from handler.spellings import DATA_TYPES

TYPES = ("fp32", "fp16", "bf16", "int8", "fp8")
ENCODER = "minilm"
SCORES, MOST = 0.02, 0.05
"""How far apart the scores of one int8 archive may be on two devices (else: MISSED), and what fails the run."""
Answers = dict[str, list[dict[str, Any]]]
"""All answers of a type on a device, by sample."""
_DATA = machine.ROOT / "samples" / "data"


@dataclass(frozen=True)
class Sample:
    """A sample model with its dev inputs; ``measure`` is a name of METRICS."""

    name: str
    measure: str
    examples: list[Example]


def samples() -> list[Sample]:
    """Both of them."""
    return [
        Sample("ticket_routing", "labels", read_labels(_DATA / "tickets.tsv")),
        Sample("document_qa", "squad", read_squad(_DATA / "documents-dev.json")),
    ]


def run(options: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON. Raises ValueError where the samples cannot be had or an input is
    answered with an error, and, once all is written, where an archive was refused or an int8 archive answers otherwise
    on two devices."""
    types = options.types or list(TYPES)
    if "cuda" in options.devices and not torch.cuda.is_available():
        raise ValueError("--devices cuda: torch sees no GPU here")
    with tempfile.TemporaryDirectory() as temporary:
        store = options.store or Path(temporary)
        ready = prepared(store, types, gpu="cuda" in options.devices, jobs=options.jobs, threads=options.threads)
        rows, said = [], {}
        for device in options.devices:
            for data_type in types:
                row, answers = measured(store, ready, data_type, device, options.threads)
                said[device, data_type] = answers
                rows.append(row | others(answers, said.get((device, "fp32"), {}), "other_than_fp32"))
                print(json.dumps(rows[-1]), flush=True)
    both = []
    if len(options.devices) == 2:
        both = [{"data_type": t, **apart(*(said[device, t] for device in options.devices))} for t in types]
    settings = {"task": "samples", "inputs": {sample.name: len(sample.examples) for sample in samples()}}
    place = "cuda" if "cuda" in options.devices else "cpu"
    facts = machine.facts(place, options.threads)
    result = {**facts, "settings": settings, "archives": ready, "rows": rows, "both": both}
    path = results.save("types", result, options.output)
    table.print_all(results.load(path))
    print(path)
    check(ready, both)


def check(ready: dict[str, dict[str, Any]], both: Sequence[dict[str, Any]]) -> None:
    """Print what is kept and what is missed (``verdicts``).

    Raises ValueError for an archive that was refused, and where int8 decides otherwise on two devices or its scores are
    more than MOST apart.
    """
    for line in verdicts(both):
        print(line)
    for name, facts in ready.items():
        if "refused" in facts:
            raise ValueError(f"{name}: {facts['refused']}")
    for name, count, decisions, scores in _of_int8(both):
        if decisions or scores > MOST:
            raise ValueError(
                f"one int8 archive of {name} on two devices: {decisions} of {count} decided otherwise, scores up to "
                f"{scores:.4f} apart (allowed {MOST})"
            )


def verdicts(both: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each thing that is wanted of one int8 archive on two devices: kept or MISSED."""
    lines = []
    for name, count, decisions, scores in _of_int8(both):
        for what, value, wanted, held in (
            ("decided otherwise", f"{decisions} of {count}", "0", decisions == 0),
            ("scores apart by up to", f"{scores:.4f}", f"{SCORES}", scores <= SCORES),
        ):
            lines.append(f"{name}, int8, {what}: {value} (wanted at most {wanted}): {'kept' if held else 'MISSED'}")
    return lines


def _of_int8(both: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, int, float]]:
    """Name, inputs, decisions that differ and distance of scores, of the samples that both devices answered in int8."""
    for row in (row for row in both if row["data_type"] == "int8"):
        for sample in samples():
            if f"{sample.name}_scores" in row:
                scores = row[f"{sample.name}_scores"]
                yield sample.name, len(sample.examples), row[f"{sample.name}_decisions"], scores


def prepared(store: Path, types: Sequence[str], *, gpu: bool, jobs: int, threads: int) -> dict[str, dict[str, Any]]:
    """See that ``store`` has an archive of each model and type, ``jobs`` built at a time; what each says of itself, or
    why the builder refused it."""
    wanted = [(name, t) for name in (*(sample.name for sample in samples()), ENCODER) for t in types]
    missing = [one for one in wanted if not _archive(store, *one).exists()]
    missing.sort(key=lambda one: TYPES.index(one[1]), reverse=True)  # those that take longest first
    folders = checkpoints(store, {name for name, _ in missing})
    refused: dict[tuple[str, str], str] = {}

    def make(one: tuple[str, str]) -> None:
        try:
            archives.build(_config(folders, *one), store, gpu=gpu, threads=max(1, threads // jobs))
        except ValueError as error:
            refused[one] = str(error)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(make, missing))
    return {
        _archive(store, *one).stem: {"refused": refused[one]} if one in refused else _facts(_archive(store, *one))
        for one in wanted
    }


def checkpoints(store: Path, names: set[str]) -> dict[str, Path]:
    """The folders of the models that archives are still to be built of."""
    from transformers.utils import logging

    from samples.base import SamplesError, base_folder
    from samples.build import build
    from samples.cli import SAMPLES

    logging.disable_progress_bar()  # it would bury the figures
    try:
        merged = {name: build(SAMPLES[name], store / "checkpoints" / name) for name in SAMPLES if name in names}
        return {**merged, ENCODER: base_folder()}
    except SamplesError as error:
        raise ValueError(str(error)) from error


def _config(folders: dict[str, Path], name: str, data_type: str) -> SetupConfig:
    compute, scheme = DATA_TYPES[data_type]
    file = machine.ROOT / "setup_configs" / f"{name}.json"
    base = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"task": "embedding"}
    own = {"model_name": str(folders[name].resolve()), "name": f"{name}-{data_type}"}
    return SetupConfig.model_validate({**base, **own, "compute": compute, "scheme": scheme})


def _archive(store: Path, name: str, data_type: str) -> Path:
    return store / f"{name}-{data_type}.mar"


def _facts(path: Path) -> dict[str, Any]:
    from builder.inspection import read_facts

    facts = read_facts(path)
    made = facts.quantisation
    kept = {"matrices": made["matrices"], "kept": len(made["kept"])} if made else {}
    with path.open("rb") as file:
        return {"sha256": stream_sha256(file), "compute": facts.compute, "scheme": facts.scheme, **kept}


def measured(
    store: Path, ready: dict[str, dict[str, Any]], data_type: str, device: str, threads: int
) -> tuple[dict[str, Any], Answers]:
    """A row of a type on a device, and all answers by sample; without those whose archive was refused."""
    row: dict[str, Any] = {"device": device, "data_type": data_type}
    said: Answers = {}
    for sample in samples():
        path = _archive(store, sample.name, data_type)
        if path.exists():
            said[sample.name], labels = answers(path, sample.examples, device, threads)
            figures = METRICS[sample.measure](sample.examples, said[sample.name], labels)
            row |= {f"{sample.name}_{name}": round(value, 2) for name, value in figures.items()}
    path = _archive(store, ENCODER, data_type)
    row |= cosines(path, device, threads) if path.exists() else {}
    facts = {name: ready[f"{name}-{data_type}"] for name in (*(sample.name for sample in samples()), ENCODER)}
    return row | {f"{name}_kept": found["kept"] for name, found in facts.items() if "kept" in found}, said


def opened(archive: Path, device: str, threads: int) -> Engine:
    """An archive on a device. Raises ValueError where it would run on another one."""
    engine = Engine.open(archive, device=device, threads=threads)
    if engine.model.device.type != device:
        engine.close()
        raise ValueError(f"{archive.name} does not run on {device}; it has no library for it")
    return engine


def answers(
    archive: Path, examples: Sequence[Example], device: str, threads: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each input's answer, and the model's labels. All inputs go in at once: a GPU multiplies few tokens in 16 bits.

    Raises ValueError for an input that is answered with an error.
    """
    with opened(archive, device, threads) as engine:
        found = []
        for number, answer in enumerate(engine.payloads([engine.read(example.payload) for example in examples])):
            if isinstance(answer, RequestError):
                raise ValueError(f"{archive.name} on {device}, input {number}: {answer}")
            found.append(answer)
        return found, engine.facts.labels


def cosines(archive: Path, device: str, threads: int) -> dict[str, Any]:
    """The worst token's and the worst pooled cosine of an archive's encoder against the checkpoint in fp32: on the
    gate's inputs, and on the dev messages."""
    from builder.checkpoint import load
    from builder.encoder import encode
    from builder.families import spec_of
    from builder.models import encoder_of, output_of
    from builder.quantisation.eight_bits import expected_states, gate_inputs, measure, repeated
    from samples.base import base_folder

    checkpoint = load(SetupConfig(model_name=str(base_folder()), task="embedding"))
    spec, output = spec_of(checkpoint.config), output_of(checkpoint, checkpoint.sentences.pooling)
    base = encoder_of(checkpoint, checkpoint.load_model())
    texts = [example.payload["text"] for example in samples()[0].examples]
    found: dict[str, Any] = {}
    with opened(archive, device, threads) as engine:
        weights, place = engine.model.module.encoder, engine.model.device

        def hidden(batch: Any) -> torch.Tensor:
            return repeated(batch, place, lambda many: encode(spec, weights, many, "hidden")).float().cpu()

        for name, inputs in (
            ("", gate_inputs(checkpoint, None)[1]),
            ("dev_", [("messages", _batch(checkpoint, texts))]),
        ):
            worst = measure(expected_states(checkpoint, base, inputs), hidden, output)
            found |= {f"{name}{key}": value for key, value in asdict(worst).items()}
    return found


def _batch(checkpoint: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    encoded = checkpoint.load_tokenizer()(texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
    return encoded.input_ids, torch.zeros_like(encoded.input_ids), encoded.attention_mask


def others(said: Answers, basis: Answers, key: str) -> dict[str, int]:
    """How many inputs of each sample are decided otherwise than in ``basis``; of those samples that both have."""
    return {
        f"{name}_{key}": sum(decision(a) != decision(b) for a, b in zip(own, basis[name], strict=True))
        for name, own in said.items()
        if name in basis
    }


def apart(one: Answers, other: Answers) -> dict[str, Any]:
    """Of two devices' answers: how many decisions differ, and the largest distance of scores of the same decision."""
    found: dict[str, Any] = others(one, other, "decisions")
    for name, own in one.items():
        pairs = [(a, b) for a, b in zip(own, other[name], strict=True) if decision(a) == decision(b)]
        found[f"{name}_scores"] = max((abs(a["score"] - b["score"]) for a, b in pairs), default=0.0)
    return found
