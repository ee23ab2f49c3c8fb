"""Build one ``.mar``: stage the files, prove them, pack them (:mod:`builder.mar`).

Nothing is left half done: the stage and the unfinished archive live under temporary names (:mod:`builder.staging`), and
a failed parity gate leaves neither.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from builder import adapted
from builder.checkpoint import Checkpoint, load
from builder.compile import OLDEST_TORCH, ROOT
from builder.errors import BuildError
from builder.families import spec_of
from builder.formats import WRITERS
from builder.formats.torchscript import example_inputs
from builder.gate.overflow import first_beyond
from builder.gate.parity import Refused, prove
from builder.gate.verdict import CosineVerdict, Verdict
from builder.mar import pack
from builder.models import DTYPES, own_head, stock_model
from builder.naming import archive_name, check_output
from builder.quantisation.schemes import RECIPES, SHARES, shares
from builder.quiet import quiet
from builder.sentence_transformers.outputs import skipped
from builder.serving import default_batch, default_workers, gpus
from builder.staging import staging
from builder.tokenizers import TOKENIZER_FILES
from handler.archive import ArchiveFacts, LibraryFacts, ModelFacts, Sizes, TorchFacts
from handler.config import SetupConfig
from handler.gemm_config import NAME as GEMM_CONFIG
from handler.integrity import sha256
from handler.original import HEADS
from handler.schemes import SCHEMES, original_type
from handler.spellings import FILES, devices
from handler.threads import available_cores

Report = Callable[[str], None]


def build(
    config: SetupConfig,
    libraries: Sequence[LibraryFile],
    output: Path,
    report: Report,
    gemm_config: Path | None = None,
    calibrate: Path | None = None,
) -> tuple[Path, Verdict | CosineVerdict]:
    """Build the archive of ``config`` in the folder ``output``.

    ``libraries`` are the operator libraries to carry (only the fused encoder needs any), ``gemm_config`` what
    ``builder tune`` measured for the CUDA library, ``calibrate`` the texts for a scheme that takes some
    (``builder.quantisation.calibration``); ``report`` is told each step's name. Returns the archive's path and the
    gate's verdict. Raises BuildError; then no archive was written.
    """
    check_type(config, [library.facts.device for library in libraries], calibrate)
    names = list(config.adapters)
    config, others = adapted.split(config)
    report("reading the checkpoint")
    checkpoint = load(config)
    config = _wide_enough(config, checkpoint)
    checkpoints = adapted.read(others, checkpoint)
    name = archive_name(config.name, checkpoint.source)
    if config.encoder != "fused":
        libraries = []
    check_output(output, name)
    with staging(output, name) as temporary:
        stage = temporary / "stage"
        stage.mkdir()
        if gemm_config is not None:
            shutil.copyfile(gemm_config, stage / GEMM_CONFIG)
        facts, verdict = _proven(stage, name, config, checkpoint, libraries, report, calibrate)

        def staged(folder: Path, own: SetupConfig, found: Checkpoint) -> ArchiveFacts:
            return _proven(folder, name, _wide_enough(own, found), found, libraries, report, calibrate)[0]

        adapted.add(stage, facts, others, checkpoints, staged)
        facts = facts.model_copy(update={"adapters": names})
        facts.save(stage / "archive.json")
        report("packing")
        return pack(stage, facts, output), verdict


def _proven(
    stage: Path,
    name: str,
    config: SetupConfig,
    checkpoint: Checkpoint,
    libraries: Sequence[LibraryFile],
    report: Report,
    calibrate: Path | None,
) -> tuple[ArchiveFacts, Verdict | CosineVerdict]:
    """Write an archive's files into a folder and prove them; what they are, and how the proof went.

    Where a device's figures are refused that more matrices in 16 bits could mend, these are tried.
    """
    first, *others = shares(config.scheme)
    facts = write_files(stage, name, config, checkpoint, libraries, report, calibrate, first)
    again = partial(_stage_model, stage, config, checkpoint, libraries, facts, calibrate)
    report("proving it equal to the checkpoint in a fresh process")
    while True:
        try:
            verdict = prove(stage, config, calibrate)
            return facts.model_copy(update={"parity": asdict(verdict)}), verdict
        except Refused as refusal:
            facts = _with_more_kept(again, facts, others, refusal)
            facts.save(stage / "archive.json")


def _with_more_kept(
    again: Callable[[float], ArchiveFacts], facts: ArchiveFacts, others: list[float], refusal: Refused
) -> ArchiveFacts:
    """The archive's model made ``again`` by the first of ``others`` that keeps other matrices in 16 bits; says so.

    Raises the refusal where none does.
    """
    while others:
        found = again(others.pop(0))
        kept = found.quantisation["kept"]
        if kept != facts.quantisation["kept"]:
            line = str(refusal).removesuffix("; no archive was written")
            tqdm.write(f"note: {line}; once more with {len(kept)} matrices in 16 bits", file=sys.stderr)
            return found
    raise refusal


def write_files(
    stage: Path,
    name: str,
    config: SetupConfig,
    checkpoint: Checkpoint,
    libraries: Sequence[LibraryFile],
    report: Report,
    calibrate: Path | None = None,
    share: float = SHARES[0],
) -> ArchiveFacts:
    """Write everything that an archive holds into the empty folder ``stage``, unproven and unpacked; see ``build``.

    ``share``: of the distance that the gate allows, what an 8-bit scheme's choice of matrices may use up.
    """
    tokenizer = checkpoint.load_tokenizer()
    facts = _facts(name, config, checkpoint, libraries, tokenizer)
    report(f"writing the model ({config.encoder} encoder, {config.data_type})")
    facts = _stage_model(stage, config, checkpoint, libraries, facts, calibrate, share)
    report("writing tokenizer, handler and configuration")
    _stage_files(stage, config, checkpoint, libraries, facts, tokenizer)
    return facts


def _wide_enough(config: SetupConfig, checkpoint: Checkpoint) -> SetupConfig:
    """The config, in bf16 where it asks for fp16 and values of the checkpoint leave that type's range; says so."""
    if config.compute != "fp16" or (beyond := first_beyond(checkpoint)) is None:
        return config
    tqdm.write(f"note: {checkpoint.source}: {beyond.line()}", file=sys.stderr)
    return config.model_copy(update={"compute": "bf16"})


def check_type(config: SetupConfig, carried: Sequence[str], calibrate: Path | None) -> None:
    """Raises BuildError where the scheme does not go with the encoder, the devices or the calibration texts."""
    name, scheme = config.scheme, SCHEMES[config.scheme]
    if calibrate is not None and not RECIPES[name].takes_texts:
        takers = " or ".join(other for other, recipe in RECIPES.items() if recipe.takes_texts)
        raise BuildError(f"--calibrate is for --scheme {takers} (--data-type {takers}) only")
    if config.keep and name == "none":
        raise BuildError("keep: only a quantisation scheme has matrices to keep; choose --scheme int8 or fp8")
    if scheme.fused_only and config.encoder != "fused":
        raise BuildError(f"{name} needs encoder fused (kind thsext); kind {config.kind} has no such products")
    if "cuda" in carried and "cuda" not in scheme.devices:
        raise BuildError(f"{name} archives run on the CPU only; build with --device cpu, or choose bf16 or fp16")
    if calibrate is not None and not calibrate.is_file():
        raise BuildError(f"--calibrate {calibrate}: no such file")


class LibraryFile:
    """An operator library and what it has machine code for."""

    def __init__(self, path: Path, device: str, targets: Sequence[str]) -> None:
        self.path = path
        self.facts = LibraryFacts.model_validate({"sha256": sha256(path), "device": device, "targets": list(targets)})


def _facts(
    name: str, config: SetupConfig, checkpoint: Checkpoint, libraries: Sequence[LibraryFile], tokenizer: Any
) -> ArchiveFacts:
    spec = spec_of(checkpoint.config)
    return ArchiveFacts.model_validate(
        {
            "name": name,
            "task": checkpoint.task,
            "family": checkpoint.config.model_type,
            "encoder": config.encoder,
            "model": ModelFacts.model_validate(
                {
                    "format": config.format,
                    "file": FILES[config.format],
                    "devices": devices(config.encoder, config.scheme, [library.facts.device for library in libraries]),
                }
            ),
            "compute": config.compute,
            "scheme": config.scheme,
            "labels": checkpoint.labels,
            "problem_type": checkpoint.problem_type,
            "max_positions": checkpoint.longest,
            "uses_segments": checkpoint.uses_segments,
            "pad_id": checkpoint.config.pad_token_id or 0,
            "mask_id": tokenizer.mask_token_id,
            "entailment": checkpoint.entailment,
            "truncation_side": tokenizer.truncation_side,
            **_sentence_facts(config, checkpoint),
            **_output_facts(checkpoint, tokenizer),
            "sizes": Sizes(
                layers=spec.layers,
                hidden=spec.hidden,
                embedding=spec.width,
                intermediate=spec.intermediate,
                heads=spec.heads,
            ),
            "encoder_spec": spec.text() if config.encoder == "fused" else "",
            "torch": _torch_facts(config),
            "libraries": {library.path.name: library.facts for library in libraries},
            "checkpoint": {
                "name": checkpoint.source,
                "revision": checkpoint.revision,
                "sha256": checkpoint.sha256,
                **({} if config.adapter is None else {"adapter": Path(config.adapter).name}),
                "unused": checkpoint.unused,
            },
        }
    )


def _torch_facts(config: SetupConfig) -> TorchFacts:
    built = torch.__version__.split("+")[0]
    # An older torch need not know the schema in which torch.export writes a graph.
    oldest = built.split(".")[:2] if config.format == "export" else map(str, OLDEST_TORCH)
    return TorchFacts(built=built, oldest=".".join(oldest))


def _sentence_facts(config: SetupConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """What embeddings and rerank scores are made with. Raises BuildError for a default prompt that does not exist."""
    if not checkpoint.prompted:
        return {}
    sentences = checkpoint.sentences
    prompts = {**sentences.prompts, **(config.prompts or {})}
    default = config.default_prompt_name or sentences.default_prompt_name
    if default is not None and default not in prompts:
        raise BuildError(f"default_prompt_name is {default!r}, but the prompts are {', '.join(prompts) or 'none'}")
    facts = {"prompts": prompts, "default_prompt_name": default, "activation": sentences.activation}
    if checkpoint.task not in ("embedding", "hybrid_embedding"):
        return facts
    return {
        **facts,
        "pooling": sentences.pooling,
        "normalize": sentences.normalize if config.normalize is None else config.normalize,
        "cut_first": False,
        "dimensions": sentences.dimensions,
        "include_prompt": sentences.include_prompt,
    }


def _output_facts(checkpoint: Checkpoint, tokenizer: Any) -> dict[str, Any]:
    """How a model of several outputs, or of one that is no vector, is served."""
    outputs = checkpoint.sentences.outputs
    if outputs is None:
        return {}
    sparse = outputs.sparse
    if sparse is not None and sparse.kind == "lexical":
        sparse = sparse.model_copy(update={"skip": skipped(tokenizer)})
    names = outputs.names if checkpoint.task == "hybrid_embedding" else ()
    return {"sparse": sparse, "multi_vector": outputs.multi_vector, "outputs": list(names)}


def _stage_model(
    stage: Path,
    config: SetupConfig,
    checkpoint: Checkpoint,
    libraries: Sequence[LibraryFile],
    facts: ArchiveFacts,
    calibrate: Path | None,
    share: float,
) -> ArchiveFacts:
    """Write the model; returns the facts with what was found on the way."""
    if config.format == "transformers" or config.captum_explanation:
        # Explanations need gradients, which the fused encoder does not give: its differentiable twin is the original.
        original = DTYPES[original_type(config.compute, config.scheme)]
        with quiet():  # its bar would be drawn into the builder's
            checkpoint.load_model(original).save_pretrained(stage / FILES["transformers"])  # type: ignore[operator]
        if own_head(checkpoint, facts.pooling) is not None:
            _stage_head(stage / FILES["transformers"], config, checkpoint, facts)
    if config.format == "transformers":
        return facts
    if config.encoder == "stock":
        module: torch.nn.Module = stock_model(checkpoint, DTYPES[config.compute], pooling=facts.pooling)
    else:
        from builder import ops

        ops.load(libraries[0].path)
        gpu = any(library.facts.device == "cuda" for library in libraries)
        make = RECIPES[config.scheme].make
        module, chosen = make(checkpoint, config.compute, facts.pooling, calibrate, config.keep, share, gpu)
        model = facts.model.model_copy(update={"packed": module.takes_packed})
        facts = facts.model_copy(update={"model": model, "quantisation": chosen})
    length = min(16, facts.max_positions)
    inputs = example_inputs(checkpoint.config.vocab_size, max(2, min(config.batch_size, 4)), length)
    WRITERS[config.format](module, inputs, stage / facts.model.file)
    return facts


def _stage_head(folder: Path, config: SetupConfig, checkpoint: Checkpoint, facts: ArchiveFacts) -> None:
    """What stands behind an embedding model's encoder beside the original, which is the encoder alone; of a sparse one
    what stands behind its logits."""
    head = own_head(checkpoint, facts.pooling)
    assert head is not None
    form = "export" if config.format == "export" else "torchscript"
    width = facts.sizes.hidden if checkpoint.bare else checkpoint.config.vocab_size
    WRITERS[form](head, (torch.zeros(2, 4, width), torch.ones(2, 4, dtype=torch.int64)), folder / HEADS[form])


def _stage_files(
    stage: Path,
    config: SetupConfig,
    checkpoint: Checkpoint,
    libraries: Sequence[LibraryFile],
    facts: ArchiveFacts,
    tokenizer: Any,
) -> None:
    for file in TOKENIZER_FILES:
        if (checkpoint.tokenizer_folder / file).exists():
            shutil.copyfile(checkpoint.tokenizer_folder / file, stage / file)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.save(str(stage / "tokenizer.json"))
    for library in libraries:
        shutil.copyfile(library.path, stage / library.path.name)
    if facts.labels:
        _write_json(stage / "index_to_name.json", {str(i): label for i, label in enumerate(facts.labels)})
    adapter = None if config.adapter is None else Path(config.adapter).name
    names = {"model_name": checkpoint.source, "name": facts.name, "task": checkpoint.task, "adapter": adapter}
    served = config.model_copy(update=names)
    _write_json(stage / "setup_config.json", served.model_dump(mode="json"))
    (stage / "model-config.yaml").write_text(yaml.safe_dump(_server_settings(config, facts), sort_keys=True))
    facts.save(stage / "archive.json")
    # No worker scores files or is another server.
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "bulk", "servers", "wire")
    shutil.copytree(ROOT / "handler", stage / "handler", ignore=ignore)
    shutil.copyfile(ROOT / "handler" / "service.py", stage / "service.py")


def _server_settings(config: SetupConfig, facts: ArchiveFacts) -> dict[str, Any]:
    """TorchServe's per-model settings (its documentation: "Model configuration", model-config.yaml)."""
    on_gpu, here = "cuda" in facts.model.devices, gpus()
    workers = config.workers or default_workers(on_gpu, available_cores(), here)
    return {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": default_batch(config, on_gpu, here),
        "maxBatchDelay": max(1, config.max_batch_delay),  # TorchServe takes 0 for its default, 100
        "responseTimeout": config.response_timeout,
        "startupTimeout": config.startup_timeout,
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
