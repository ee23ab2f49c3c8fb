"""An encoder's weights in the form that their device likes best, which the operator itself makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from handler.archive import ArchiveError, ArchiveFacts
from handler.errors import first_line


def prepare(module: Any, facts: ArchiveFacts) -> None:
    """Put a loaded module's weights into that form; once, not at every call. A stock encoder has none.

    Raises ArchiveError where they are not those of the encoder that archive.json describes.
    """
    if "encoder.matrices" not in dict(module.named_buffers()):
        return
    encoder = module.encoder
    try:
        if facts.encoder_spec:
            names = [name for name, _ in encoder.named_buffers()]
            weights = [getattr(encoder, name) for name in names]
            for name, weight in zip(names, torch.ops.efft.prepare_weights(weights, facts.encoder_spec), strict=True):
                setattr(encoder, name, weight)
        else:  # an archive of 0.1.0
            s = facts.sizes
            sizes = (s.layers, s.hidden, s.embedding, s.intermediate)
            encoder.matrices = torch.ops.efft.prepare(encoder.matrices, *sizes, encoder.vectors)
    except RuntimeError as error:
        raise ArchiveError(
            f"the encoder's weights cannot be prepared ({first_line(error)}); build the archive again"
        ) from error


def share(module: Any, first: Any) -> None:
    """Let a loaded module hold the tensors of another one wherever it has equal ones of the same names."""
    there = _tensors(first)
    for name, tensor in _tensors(module).items():
        twin = there.get(name)
        if twin is not None and _alike(tensor, twin) and torch.equal(tensor, twin):
            tensor.data = twin.data


def _tensors(module: Any) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
