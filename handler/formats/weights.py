"""An encoder's weights in the form that their device likes best, which the operator itself makes."""

from __future__ import annotations

from typing import Any

import torch

from handler.archive import ArchiveError, ArchiveFacts


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
        reason = str(error).strip().splitlines()[0]
        raise ArchiveError(f"the encoder's weights cannot be prepared ({reason}); build the archive again") from error
