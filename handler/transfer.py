"""One way to the device and one way back for each pass, from and to memory that the device reads by itself.

Three arrays in pageable memory are three copies, for each of which the driver first copies into a buffer of its own and
the host waits. Here ids, segments and mask or offsets are one pinned block, all outputs come back as one, and the host
waits once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Sequence as Many
from typing import Final, Literal

import numpy as np
import torch

from handler.packing import Arrays

How = Literal["spin", "block"]
WAIT: Final = "EFFT_GPU_WAIT"
"""Of the environment: ``spin`` or ``block``, whatever the number of workers."""
_SMALL: Final = 1 << 14
"""Numbers of a result that is copied out of memory that is kept: 64 KB, whose copy takes less than pinning others."""
_waiting: list[How] = ["spin"]


def wait_as(workers: int) -> None:
    """How this process waits for the GPU from now on, by how many workers the server has.

    A lone worker spins, which notices the end some ten microseconds sooner. Of several each sleeps, so that the cores
    are there for the others' tokenizing and for the front end; but not through the pass of a lone text, which is over
    soon and comes when there is little else to do.
    """
    wanted = os.environ.get(WAIT)
    _waiting[0] = "spin" if wanted == "spin" or (wanted != "block" and workers == 1) else "block"


def waiting() -> How:
    """How this process waits for the GPU."""
    return _waiting[0]


def joined(outputs: Many[torch.Tensor]) -> torch.Tensor:
    """A model's outputs in fp32, one behind the other."""
    parts = [output.reshape(-1).float() for output in outputs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Wait:
    """Waits for what this thread has enqueued on a device, in the way that the process waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._handle = -1
        self._event: torch.cuda.Event | None = None

    def _current(self) -> torch.cuda.Stream:
        """This thread's stream; nearly always the last one, and made anew it costs some microseconds."""
        index = self._device.index
        handle = torch._C._cuda_getCurrentRawStream(torch.cuda.current_device() if index is None else index)
        if self._stream is None or handle != self._handle:
            self._handle, self._stream = handle, torch.cuda.current_stream(self._device)
        return self._stream

    def __call__(self, *, soon: bool) -> None:
        """``soon``: whether it is the pass of a lone text, see :func:`wait_as`."""
        if self._device.type == "cpu":
            return
        stream = self._current()
        if _waiting[0] == "spin" or (soon and os.environ.get(WAIT) != "block"):
            stream.synchronize()
            return
        if self._event is None:
            self._event = torch.cuda.Event(blocking=True)
        self._event.record(stream)
        self._event.synchronize()


class Staging:
    """One model's way to its device and back; for one thread at a time. Pinned memory is kept from pass to pass, since
    to hand it out anew takes torch some microseconds each way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sent = torch.empty(0, dtype=torch.int64)
        self._landed = torch.empty(0)
        self._under_way = False
        """Whether what was sent may not have been read yet: a pass that failed has not been waited for."""
        self._wait = Wait(device)

    def to_device(self, arrays: Many[np.ndarray]) -> list[torch.Tensor]:
        """int64 arrays on the device, each contiguous there; on the CPU the arrays' own memory."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        sizes = [array.size for array in arrays]
        total = sum(sizes)
        if self._under_way or total > len(self._sent):
            self._sent = torch.empty(2 * total, dtype=torch.int64, pin_memory=True)
        self._under_way = True
        block = self._sent[:total]
        np.concatenate([array.reshape(-1) for array in arrays], out=block.numpy())
        there = block.to(self._device, non_blocking=True).split(sizes)
        return [flat if array.ndim == 1 else flat.view(array.shape) for flat, array in zip(there, arrays, strict=True)]

    def to_host(self, outputs: Iterable[torch.Tensor]) -> Arrays:
        """A model's outputs as fp32 arrays."""
        if self._device.type == "cpu":
            return tuple(output.float().numpy() for output in outputs)
        made = list(outputs)
        flat = joined(made)
        small = flat.numel() <= _SMALL
        if small and not len(self._landed):
            self._landed = torch.empty(_SMALL, pin_memory=True)
        place = self._landed[: flat.numel()] if small else torch.empty(flat.numel(), pin_memory=True)
        place.copy_(flat, non_blocking=True)
        self._wait(soon=False)
        self._under_way = False
        whole = place.numpy().copy() if small else place.numpy()
        ends = np.cumsum([output.numel() for output in made])
        parts = [whole] if len(made) == 1 else np.split(whole, ends[:-1])
        return tuple(part.reshape(output.shape) for part, output in zip(parts, made, strict=True))
