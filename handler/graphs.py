"""A model's small passes as CUDA graphs: from ids in the host's memory to logits there, in one launch.

A pass of a few texts takes the device less time than the host needs to launch it kernel by kernel, through a traced
module, with a copy each way. So what such a pass enqueues is captured once for its shape and replayed from then on
("Getting Started with CUDA Graphs", NVIDIA's developer blog, 2019).

Shapes are rounded up, so that few graphs serve all passes. What is added are texts of their own, which no other text
sees: one token at least each, since a head may divide by their number. A pass is computed in the rounded shape from the
first time on, and by the same kernels, so that its bits do not depend on whether there is a graph yet.
"""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Many
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from handler.capture import Capture, Replayable
from handler.errors import first_line
from handler.packing import Arrays, out_of_memory
from handler.transfer import Wait, joined

logger = logging.getLogger(__name__)

VARIABLE: Final = "EFFT_GPU_GRAPHS"
"""Of the environment: ``off`` to have every pass launched kernel by kernel."""
PACKED_TOKENS: Final = 4096
"""Most tokens of a pass of packed ids that gets a graph: beyond, the host is ready before the device is."""
FUSED_CELLS: Final = 256
"""Most cells of a padded pass of the fused encoder: of more it counts the tokens on the way, which no graph can
(kernels/cuda/engine/path.cu)."""
STOCK_CELLS: Final = 1024
"""Most cells of a stock encoder's pass, which computes its pads."""
_RUNS: Final = 2
"""Passes of a shape before it is captured: TorchScript compiles for a shape in the first two, and most are rare."""
_KEPT: Final = 128
"""Graphs; one takes some 200 KB on the device."""
_SEEN: Final = 512
"""Shapes without a graph that are remembered, apart from the others: such as come once push out no graph."""
_NUMBERS: Final = 1 << 18
"""Most numbers that a captured pass gives back, 1 MB: its place in pinned memory is kept."""
_PROBES: Final = ((2, 5), (3, 7))
"""Rows and columns of two passes whose outputs tell which of their dimensions are rows and which are tokens."""


class Shape(NamedTuple):
    """A pass as it is computed. ``columns``: the longest text's tokens, the width of a padded batch. ``tokens``: of
    packed ids, 0 of padded ones."""

    rows: int
    columns: int
    tokens: int

    @property
    def numbers(self) -> int:
        """Of ids, segments, and mask or offsets together."""
        return 2 * self.tokens + self.rows + 1 if self.tokens else 3 * self.rows * self.columns


class Output(NamedTuple):
    """One output of a module: what its first dimensions count (``rows``, ``tokens``, or ``cells``, which are rows and
    columns), and the sizes of the others."""

    counts: str
    rest: tuple[int, ...]

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The whole output's sizes in a pass."""
        first = {"rows": (shape.rows,), "tokens": (shape.tokens,), "cells": (shape.rows, shape.columns)}
        return (*first[self.counts], *self.rest)


class _Kept:
    """What is remembered of a shape: where its outputs land, how often it was run, and its graph."""

    __slots__ = ("graph", "numbers", "places", "runs", "shape")

    def __init__(self, shape: Shape, outputs: Many[Output]) -> None:
        self.shape = shape
        self.places: list[tuple[Output, int, int, tuple[int, ...]]] = []
        """Of each output its place among the numbers that come back, from and to, and its sizes."""
        self.numbers = 0
        for output in outputs:
            sizes = output.sizes(shape)
            end = self.numbers + math.prod(sizes)
            self.places.append((output, self.numbers, end, sizes))
            self.numbers = end
        self.runs = 0
        self.graph: Replayable | None = None


class Graphs:
    """The small passes of one module on one device; for one thread at a time.

    ``packed``: whether the module takes packed ids. ``most``: tokens, or cells of padded ids, of a pass that may have a
    graph. ``longest``: tokens of the longest text that the module takes. ``capture``: see
    :class:`handler.capture.Capture`.
    """

    def __init__(
        self,
        module: Any,
        device: torch.device,
        *,
        packed: bool,
        most: int,
        longest: int,
        capture: Callable[[Callable[[], None]], Replayable] | None = None,
    ) -> None:
        self._module = module
        self._packed = packed
        self._most = most
        self._longest = longest
        self._capture = capture or Capture(device)
        pins = device.type == "cuda"
        # One place each for all shapes, since passes come one after another. The first has room for the widest of all:
        # packed texts of one token each, or ids, segments and mask.
        self._sent = torch.zeros(3 * most + 1, dtype=torch.int64, pin_memory=pins)
        self._there = torch.zeros(3 * most + 1, dtype=torch.int64, device=device)
        self._landed = torch.zeros(_NUMBERS, pin_memory=pins)
        self._block = self._sent.numpy()
        self._numbers = self._landed.numpy()
        self._wait = Wait(device)
        self._kept: OrderedDict[Shape, _Kept] = OrderedDict()
        """Those with a graph, in the order of their last passes."""
        self._seen: OrderedDict[Shape, _Kept] = OrderedDict()
        """Those without, as well."""
        self._outputs: list[Output] | None = None
        self._under_way = False
        """Whether what was sent may not have been read yet: a pass that failed has not been waited for."""
        self._rests = 0
        """Passes until a graph is asked for again: there was no memory for the last one."""
        self._patience = 64
        self.off = False
        """Whether no pass gets a graph any more: one could not be captured."""

    @property
    def captured(self) -> list[Shape]:
        """The shapes that have a graph."""
        return list(self._kept)

    def release(self) -> bool:
        """Let go of all graphs, for a pass that lacks their memory; later there may be some again. Whether there were
        any."""
        held = bool(self._kept)
        if held:
            self._kept.clear()
            self._rest()
        return held

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays | None:
        """A pass's outputs as fp32 arrays; None for one that is to be computed in its own shape."""
        if self.off or not 0 < ids.size <= self._most:
            return None
        if self._outputs is None and not self._learn(int(ids.flat[0])):
            return None
        kept = self._of(ids, mask)
        if kept is None:
            return None
        if self._under_way:
            self._wait(soon=False)
        (self._fill_packed if self._packed else self._fill_padded)(kept.shape, ids, segments, mask)
        self._under_way = True
        if not self._run(kept):
            return None
        rows = len(mask) - 1 if self._packed else len(ids)
        self._wait(soon=rows == 1)
        self._under_way = False
        return self._taken(kept, rows, ids)

    def _of(self, ids: np.ndarray, mask: np.ndarray) -> _Kept | None:
        """What is remembered of the shape in which a pass is computed; None where that is to have no graph."""
        assert self._outputs is not None
        shape = self._shape(ids, mask)
        if shape is None:
            return None
        for known in (self._kept, self._seen):
            if shape in known:
                known.move_to_end(shape)
                return known[shape]
        kept = _Kept(shape, self._outputs)
        if kept.numbers > _NUMBERS:
            return None
        self._seen[shape] = kept
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return kept

    def _run(self, kept: _Kept) -> bool:
        """Enqueue a pass; whether its outputs are what they should be."""
        if kept.graph is None and kept.runs >= _RUNS:
            kept.graph = self._graph(kept)
            if kept.graph is not None:
                self._keep(kept)
        if kept.graph is not None:
            kept.graph.replay()
            return True
        kept.runs += 1
        try:
            self._enqueue(kept)
        except _OtherOutputs as error:
            self._give_up(error)
            return False
        return True

    def _keep(self, kept: _Kept) -> None:
        """Of a shape that has got its graph, whose place the one that was used longest ago makes free."""
        self._kept[kept.shape] = self._seen.pop(kept.shape)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _enqueue(self, kept: _Kept) -> None:
        """The whole of a pass: to the device, through the module, and back."""
        size = kept.shape.numbers
        with torch.inference_mode():
            self._there[:size].copy_(self._sent[:size], non_blocking=True)
            outputs = self._module(*self._inputs(kept.shape))
            if [tuple(output.shape) for output in outputs] != [sizes for *_, sizes in kept.places]:
                raise _OtherOutputs("its outputs' sizes do not follow from a pass's rows and tokens")
            self._landed[: kept.numbers].copy_(joined(outputs), non_blocking=True)

    def _inputs(self, shape: Shape) -> list[torch.Tensor]:
        if not shape.tokens:
            cells = shape.rows * shape.columns
            return [part.view(shape.rows, shape.columns) for part in self._there[: 3 * cells].split(cells)]
        ids, segments, offsets = self._there[: shape.numbers].split([shape.tokens, shape.tokens, shape.rows + 1])
        return [ids, segments, as_column(offsets, shape.columns)]

    def _graph(self, kept: _Kept) -> Replayable | None:
        if self._rests:
            self._rests -= 1
            return None
        try:
            return self._capture(lambda: self._enqueue(kept))
        except Exception as error:
            if out_of_memory(error):
                self._rest()
            else:
                self._give_up(error)
            return None

    def _rest(self) -> None:
        """There is no memory for graphs; there may be some again later."""
        self._rests, self._patience = self._patience, 2 * self._patience

    def _give_up(self, error: Exception) -> None:
        self.off = True
        self._kept.clear()
        self._seen.clear()
        logger.info(
            "small passes are launched kernel by kernel, as the model cannot be captured: %s", first_line(error)
        )

    def _learn(self, token: int) -> bool:
        """Find out what the module's outputs are like, with passes of this token; whether graphs may be had."""
        try:
            with torch.inference_mode():
                made = [self._module(*self._probe(token, *sizes)) for sizes in _PROBES]
            self._outputs = [_output(*pair, packed=self._packed) for pair in zip(*made, strict=True)]
        except Exception as error:
            if not out_of_memory(error):
                self._give_up(error)
            return False
        return True

    def _probe(self, token: int, rows: int, columns: int) -> list[torch.Tensor]:
        ids = torch.full((rows, columns), token, device=self._there.device)
        if not self._packed:
            return [ids, torch.zeros_like(ids), torch.ones_like(ids)]
        offsets = torch.arange(0, rows * columns + 1, columns, device=ids.device)
        return [ids.view(-1), torch.zeros_like(ids).view(-1), as_column(offsets, columns)]

    def _shape(self, ids: np.ndarray, mask: np.ndarray) -> Shape | None:
        """In which a pass is computed; None where that is too large."""
        if self._packed:
            rows = len(mask) - 1
            longest = ids.size if rows == 1 else int((mask[1:] - mask[:-1]).max())
            shape = packed_shape(ids.size, rows, longest, self._longest)
            return shape if shape.columns >= 16 and shape.tokens <= self._most else None
        rows, columns = ids.shape
        shape = Shape(rounded_size(rows), _within(rounded_tokens(columns), columns, self._longest), 0)
        return shape if shape.rows * shape.columns <= self._most else None

    def _fill_packed(self, shape: Shape, ids: np.ndarray, segments: np.ndarray, offsets: np.ndarray) -> None:
        block, count, tokens = self._block, ids.size, shape.tokens
        block[:count] = ids
        block[count:tokens] = ids[0]
        block[tokens : tokens + count] = segments
        block[tokens + count : 2 * tokens] = 0
        first, added = 2 * tokens + len(offsets), shape.rows + 1 - len(offsets)
        block[2 * tokens : first] = offsets
        # The added texts share the added tokens evenly.
        ends = tokens if added == 1 else count + np.arange(1, added + 1) * (tokens - count) // added
        block[first : first + added] = ends

    def _fill_padded(self, shape: Shape, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> None:
        whole = self._block[: shape.numbers].reshape(3, shape.rows, shape.columns)
        rows, columns = ids.shape
        whole[0] = ids[0, 0]
        whole[1:] = 0
        whole[0, :rows, :columns] = ids
        whole[1, :rows, :columns] = segments
        whole[2, :rows, :columns] = mask
        whole[2, rows:, 0] = 1

    def _taken(self, kept: _Kept, rows: int, ids: np.ndarray) -> Arrays:
        """What has landed, without what was added."""
        parts = []
        for output, place, end, sizes in kept.places:
            whole = self._numbers[place:end].reshape(sizes)
            if output.counts == "cells":
                parts.append(whole[:rows, : ids.shape[1]].copy())
            else:
                parts.append(whole[: rows if output.counts == "rows" else ids.size].copy())
        return tuple(parts)


class _OtherOutputs(Exception):
    """A module's outputs are not what its probes' were."""


def graphs_of(module: Any, device: torch.device, *, packed: bool, fused: bool, longest: int) -> Graphs | None:
    """Of a loaded module; None on a CPU, and where the environment says so."""
    if device.type != "cuda" or os.environ.get(VARIABLE) == "off":
        return None
    most = PACKED_TOKENS if packed else FUSED_CELLS if fused else STOCK_CELLS
    return Graphs(module, device, packed=packed, most=most, longest=longest)


def as_column(offsets: torch.Tensor, longest: int) -> torch.Tensor:
    """Offsets [B + 1] as the operator wants them (kernels/torch/schema.cpp): a column, as wide as the longest text."""
    return offsets.as_strided((len(offsets), longest), (1, 0))


@lru_cache(1024)
def packed_shape(tokens: int, rows: int, longest: int, most: int) -> Shape:
    """A pass of packed ids with room for what is added: at least one text, and as many as the added tokens need of at
    most ``columns`` each. ``most``: tokens that a text may have."""
    columns = _within(max(32, rounded_size(longest)), longest, most)
    added = 1
    while True:
        more = rounded_size(rows + added) - rows
        whole = rounded_tokens(tokens + more)
        added = -(-(whole - tokens) // columns)
        if added <= more or columns < 16:
            return Shape(rows + more, columns, whole)


def rounded_tokens(count: int) -> int:
    """To a multiple of an eighth of the power of two below, 16 at least, as the engine does (kernels/cuda/engine)."""
    step = 16
    while step * 16 <= count:
        step *= 2
    return -(-count // step) * step


def rounded_size(size: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, ...: powers of two and the numbers half way between."""
    power = 1 << (size - 1).bit_length()
    return power // 4 * 3 if power >= 4 and power // 4 * 3 >= size else power


def _within(rounded: int, size: int, most: int) -> int:
    """A rounded size, which may not be more than a text may have."""
    return max(size, min(rounded, most))


def _output(small: torch.Tensor, large: torch.Tensor, *, packed: bool) -> Output:
    """What the same output of the two probes is. Raises _OtherOutputs where that is not clear."""
    shapes: Many[tuple[int, ...]] = (tuple(small.shape), tuple(large.shape))
    known = {"cells": _PROBES} if not packed else {"tokens": [(rows * columns,) for rows, columns in _PROBES]}
    for counts, firsts in {**known, "rows": [(rows,) for rows, _ in _PROBES]}.items():
        width = len(firsts[0])
        if [shape[:width] for shape in shapes] == list(firsts) and shapes[0][width:] == shapes[1][width:]:
            return Output(counts, shapes[0][width:])
    raise _OtherOutputs("its outputs begin neither with a pass's rows nor with its tokens")
