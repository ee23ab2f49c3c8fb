"""One way to the device and one way back for each pass, from and to memory that the device reads by itself.

Three arrays in pageable memory are three copies, for each of which the driver first copies into a buffer of its own and
the host waits. Here ids, segments and mask or offsets are one pinned block, all outputs come back as one, and the host
waits once. torch keeps pinned blocks for later ones of their size (its caching host allocator).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
import torch

from handler.packing import Arrays

Wait = Literal["spin", "block"]
WAIT: Final = "EFFT_GPU_WAIT"
"""Of the environment: ``spin`` or ``block``, whatever the number of workers."""
_waiting: list[Wait] = ["spin"]


def wait_as(workers: int) -> None:
    """How this process waits for the GPU from now on, by how many workers the server has.

    A lone worker spins, which notices the end some ten microseconds sooner. Of several each sleeps, so that the cores
    are there for the others' tokenizing and for the front end.
    """
    wanted = os.environ.get(WAIT)
    _waiting[0] = "spin" if wanted == "spin" or (wanted != "block" and workers == 1) else "block"


def waiting() -> Wait:
    """How this process waits for the GPU."""
    return _waiting[0]


def _wait(device: torch.device) -> None:
    stream = torch.cuda.current_stream(device)
    if _waiting[0] == "spin":
        stream.synchronize()
        return
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    event.synchronize()


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """int64 arrays on a device, each contiguous there; on the CPU the arrays' own memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    parts = list(arrays)
    sizes = [part.size for part in parts]
    block = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=True)
    np.concatenate([part.reshape(-1) for part in parts], out=block.numpy())
    there = block.to(device, non_blocking=True).split(sizes)
    return [flat.view(part.shape) for flat, part in zip(there, parts, strict=True)]


def to_host(outputs: Iterable[torch.Tensor], device: torch.device) -> Arrays:
    """A model's outputs as fp32 arrays."""
    if device.type == "cpu":
        return tuple(output.float().numpy() for output in outputs)
    made = list(outputs)
    flat = made[0].float() if len(made) == 1 else torch.cat([output.reshape(-1).float() for output in made])
    landed = torch.empty(flat.shape, dtype=torch.float32, pin_memory=True).copy_(flat, non_blocking=True)
    _wait(device)
    parts = landed.view(-1).split([output.numel() for output in made])
    return tuple(part.view(output.shape).numpy() for part, output in zip(parts, made, strict=True))
