"""What an archive's model computes, read off one run of it: the encoder's call and the head's steps as data.

A traced and an exported model, of this version or an older one, have nothing in common but the operators that they
call. So one small batch is run under a TorchDispatchMode, which sees each of them with its tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from builder.encoder import NAMES as WEIGHTS
from builder.families import EncoderSpec


class UnknownHeadError(Exception):
    """A head that cannot be told as steps; the message says which operator is in the way."""


@dataclass(frozen=True)
class Step:
    """One step of a head, as spec.json lists it; ``tensors`` by their key there."""

    op: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """The encoder's operator call, and the head behind it or why there is none."""

    weights: dict[str, Tensor]
    spec: str
    reads: str
    head: tuple[Step, ...] | None
    reason: str = ""


Path = tuple[Step, ...]
_SAME = {
    "_to_copy", "view", "_unsafe_view", "reshape", "alias", "detach", "clone", "squeeze", "unsqueeze", "expand",
    "unbind", "contiguous", "clamp_min", "clamp",
}  # fmt: skip
_POINTWISE = {"tanh", "relu", "silu", "sigmoid"}
_PARTS = {"mul", "sum", "linalg_vector_norm"}
"""Steps that mean something together with the one behind them only."""


def read_graph(module: Any, vocabulary: int, length: int) -> Graph | None:
    """Run ``module`` once; None where it holds no fused encoder. ``length``: of the batch run, at least 1."""
    ids = (torch.arange(2 * length).reshape(2, length) + 1) % vocabulary
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        outputs = module(ids, torch.zeros_like(ids), torch.ones_like(ids))
    if recorder.call is None:
        return None
    weights, spec, reads = recorder.call
    try:
        head = recorder.head_of(outputs if isinstance(outputs, tuple) else (outputs,))
    except UnknownHeadError as error:
        return Graph(weights, spec, reads, None, str(error))
    return Graph(weights, spec, reads, head)


class _Recorder(TorchDispatchMode):
    """Follows the encoder's result from operator to operator."""

    def __init__(self) -> None:
        super().__init__()
        self.call: tuple[dict[str, Tensor], str, str] | None = None
        self.paths: dict[int, Path] = {}
        self.kept: list[Tensor] = []  # an id is a tensor's as long as it lives
        self.reason = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See TorchDispatchMode."""
        made = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        if space == "efft":
            self._encoder(name, args, made)
        else:
            self._follow(name, args, kwargs or {}, made)
        return made

    def head_of(self, outputs: tuple[Any, ...]) -> Path:
        """The one path that leads to all outputs."""
        paths = [self.paths.get(id(output)) for output in outputs]
        if self.reason or not paths or any(path is None for path in paths):
            raise UnknownHeadError(self.reason or "its outputs do not follow from the encoder's alone")
        first = paths[0]
        assert first is not None
        if any(path is not first for path in paths):
            raise UnknownHeadError("it has several outputs")
        if any(step.op in _PARTS for step in first):
            raise UnknownHeadError(f"it ends in {first[-1].op}")
        return first

    def _encoder(self, name: str, args: tuple[Any, ...], made: Any) -> None:
        if name == "encode":
            weights, spec, reads = dict(zip(WEIGHTS, args[3], strict=True)), args[4], args[5]
        elif name == "encoder":  # archives of 0.1.0
            weights, reads = dict(zip(WEIGHTS, args[3:8], strict=True)), args[17]
            spec = _older_spec(args[3].shape[1], *args[8:17])
        else:
            return
        self.call = weights, spec, reads
        self._keep(made, ())

    def _keep(self, made: Any, path: Path) -> None:
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.kept.append(tensor)
                self.paths[id(tensor)] = path

    def _follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        path = next((self.paths[id(a)] for a in args if isinstance(a, Tensor) and id(a) in self.paths), None)
        if path is None or self.reason:
            return
        try:
            self._keep(made, path if name in _SAME else _after(path, name, args, kwargs))
        except UnknownHeadError as error:
            self.reason = str(error)


def _after(path: Path, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Path:
    """The path with one more step. Raises UnknownHeadError."""
    if name in _POINTWISE:
        return (*path, Step(name))
    if name == "div":
        if path and path[-1].op == "linalg_vector_norm":  # its length; the vector itself is the other path
            raise UnknownHeadError("it divides a length")
        if [step.op for step in path[-2:]] == ["mul", "sum"]:
            return (*path[:-2], Step("mean"))
        if isinstance(args[1], Tensor):
            return (*path, Step("normalize"))
    if name == "gelu":
        return (*path, Step("gelu_tanh" if kwargs.get("approximate") == "tanh" else "gelu"))
    if name in _PARTS:
        return (*path, Step(name))
    if name in _READERS:
        return (*path, _READERS[name](args))
    raise UnknownHeadError(f"it calls aten::{name}")


def _linear(weight: Tensor, bias: Tensor | None) -> Step:
    return Step("linear", {"weight": weight, **({} if bias is None else {"bias": bias})})


def _norm(args: tuple[Any, ...]) -> Step:
    if args[2] is None:
        raise UnknownHeadError("it has a LayerNorm without weights")
    bias = {} if args[3] is None else {"bias": args[3]}
    return Step("layer_norm", {"weight": args[2], **bias}, {"epsilon": float(args[4])})


_READERS: dict[str, Callable[[tuple[Any, ...]], Step]] = {
    "addmm": lambda args: _linear(args[2].t(), args[0]),
    "mm": lambda args: _linear(args[1].t(), None),
    "linear": lambda args: _linear(args[1], args[2] if len(args) > 2 else None),
    "native_layer_norm": _norm,
}


def _older_spec(
    embedding: int, layers: int, hidden: int, heads: int, intermediate: int, activation: str, pre_norm: bool,
    epsilon: float, offset: int, count_positions: bool,
) -> str:  # fmt: skip
    return EncoderSpec(
        layers=layers, hidden=hidden, heads=heads, intermediate=intermediate, embedding=embedding,
        activation=activation, norm="pre" if pre_norm else "post", epsilon=epsilon, offset=offset,
        positions="mask" if count_positions else "slot",
    ).text()  # fmt: skip
