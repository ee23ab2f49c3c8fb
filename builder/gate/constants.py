"""The gate's proof of constants: windows, frequencies, buckets, gates and scales, in fp32 whatever the archive's type.

Beside the rounding of 16 or 8 bits a window that is off by one may be lost: one key of 129. What an encoder computes
stands in its spec and, as frequencies, tables of distances, biases and norms, in its vectors, which are fp32 in every
archive. So both are taken from the archive, and run with the checkpoint's tables and matrices in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from builder.checkpoint import Checkpoint
from builder.encoder import PackedWeights, pack, tensors_of
from builder.errors import BuildError
from builder.families import spec_of
from builder.gate.compare import compare
from builder.gate.probes import positional_probes
from builder.gate.verdict import Verdict
from builder.models import assemble, encoder_of
from handler.archive import ArchiveFacts
from handler.errors import first_line


@dataclass(frozen=True)
class _Stated:
    """An archive's spec, which is its text."""

    words: str

    def text(self) -> str:
        return self.words


_CONSTANTS = ("rotary", "window", "relative", "gated", "normalise", "scale", "layer_of", "dropout_token", "kv_heads")


def constants_need_proof(facts: ArchiveFacts) -> bool:
    """Whether its type is coarser than fp32, and its encoder has any: BERT's sizes and epsilon aside."""
    coarse = facts.compute != "fp32" or facts.scheme != "none"
    return coarse and any(f" {name}=" in facts.encoder_spec for name in _CONSTANTS)


def archived(model: Any, facts: ArchiveFacts) -> tuple[torch.Tensor, str]:
    """Of a loaded archive: the vectors of its encoder, and the spec that it calls the operator with."""
    graph = model.module.inlined_graph  # its nodes live as long as it does
    node = graph.findNode("efft::encode")
    said = None if node is None else list(node.inputs())[4].toIValue()
    if said != facts.encoder_spec:
        raise BuildError("parity FAILED: the model's encoder is not the one in archive.json; no archive was written")
    return model.module.encoder.vectors, facts.encoder_spec


def prove_constants(checkpoint: Checkpoint, vectors: torch.Tensor, text: str, pooling: str | None) -> Verdict:
    """Compare the checkpoint with its weights in fp32 around an archive's ``vectors`` and the ``text`` of its spec.

    Raises BuildError in one line where an engine refuses them or the figures do not hold.
    """
    model = checkpoint.load_model()
    state = tensors_of(encoder_of(checkpoint, model))
    exact = pack(state, checkpoint.family, spec_of(checkpoint.config), torch.float32)
    weights = _with(exact, vectors)
    candidate = assemble(checkpoint, model, weights, pooling)
    stated: Any = _Stated(text)
    candidate.encoder.spec = stated
    try:
        verdict = compare(checkpoint, candidate, "fp32", pooling, inputs=positional_probes(checkpoint))
    except RuntimeError as error:
        raise BuildError(
            f"parity FAILED: the encoder's spec cannot be run ({first_line(error)}); no archive was written"
        ) from error
    if not verdict.passed:
        raise BuildError(
            f"parity FAILED: the encoder's constants are not the checkpoint's: in fp32 {verdict.figures()}; "
            "no archive was written"
        )
    return verdict


def _with(exact: PackedWeights, vectors: torch.Tensor) -> PackedWeights:
    if vectors.numel() != exact.vectors.numel():
        raise BuildError(
            f"parity FAILED: the archive holds {vectors.numel()} numbers beside its matrices, the checkpoint "
            f"{exact.vectors.numel()}; no archive was written"
        )
    return replace(exact, vectors=vectors.detach().float().cpu().clone())
