"""One way to the device and one way back for each pass, from and to memory that the device reads by itself.

Three arrays in pageable memory are three copies, for each of which the driver first copies into a buffer of its own and
the host waits. Here ids, segments and mask are one pinned block, all outputs come back into pinned memory, and the host
waits once. torch keeps pinned blocks for later ones of their size (its caching host allocator).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from handler.packing import Arrays


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """int64 arrays of one shape on a device, each contiguous there; on the CPU the arrays' own memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    parts = list(arrays)
    block = torch.empty((len(parts), *parts[0].shape), dtype=torch.int64, pin_memory=True)
    np.stack(parts, out=block.numpy())
    return list(block.to(device, non_blocking=True).unbind())


def to_host(outputs: Iterable[torch.Tensor], device: torch.device) -> Arrays:
    """A model's outputs as fp32 arrays."""
    if device.type == "cpu":
        return tuple(output.float().numpy() for output in outputs)
    landed = []
    for output in outputs:
        place = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
        landed.append(place.copy_(output, non_blocking=True))
    torch.cuda.current_stream(device).synchronize()
    return tuple(place.numpy() for place in landed)
