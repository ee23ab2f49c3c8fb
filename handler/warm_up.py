"""First passes at load time, so that no client waits for compilations, allocations and page faults."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import numpy as np

from handler.packing import Model, join, out_of_memory
from handler.tokenizer import Sequence

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""No new shape is begun after this long: a slow CPU shall not miss the server's start-up timeout."""
_RUNS = 2
"""TorchScript's profiling executor records during the first run of a graph and optimises in the second. A third makes a
CUDA graph of it, where the model has such."""


def shapes(max_length: int, batch_size: int, max_tokens: int) -> Iterator[tuple[int, int]]:
    """(rows, length) of representative passes, small ones first, each within the token budget."""
    for rows, length in ((1, 16), (1, 128), (8, 64), (batch_size, 128), (1, max_length), (batch_size, max_length)):
        length = min(length, max_length)
        yield max(1, min(rows, max_tokens // length)), length


def inputs_of(model: Model, token_id: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pass of equal rows in the form that the model takes best."""
    if getattr(model, "takes_packed", False):
        return join([Sequence([token_id] * length)] * rows)
    ids = np.full((rows, length), token_id, dtype=np.int64)
    return ids, np.zeros_like(ids), np.ones_like(ids)


def warm_up(model: Model, token_id: int, max_length: int, batch_size: int, max_tokens: int) -> float:
    """Run the model over representative shapes; returns the seconds it took.

    Where memory runs out the larger shapes are left out: the packer would split them.
    """
    start = time.monotonic()
    for shape in dict.fromkeys(shapes(max_length, batch_size, max_tokens)):
        if time.monotonic() - start > SECONDS:
            break
        inputs = inputs_of(model, token_id, *shape)
        try:
            for _ in range(_RUNS + (getattr(model, "graphs", None) is not None)):
                model(*inputs)
        except Exception as error:
            if not out_of_memory(error):
                raise
            logger.warning("not enough memory for a pass of %d x %d tokens; larger ones will be split", *shape)
            break
    return time.monotonic() - start
