"""What an engine is: one way to run an encoder, prepared once and then called."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.models import Source
from benchmarks.workloads import Batch


class Engine(ABC):
    """One way to run an encoder in one type on one device.

    The constructor does what a server does once at start (convert, compile, prepack); :meth:`bind` takes a batch's
    inputs to where the engine wants them; only the call that it returns is timed.
    """

    name: ClassVar[str]
    types: ClassVar[tuple[str, ...]]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    packages: ClassVar[tuple[str, ...]] = ()
    """Python packages that must be installed; each is imported only when the engine is made."""
    looped: ClassVar[bool] = False
    """Whether a benchmark of everything also runs it one sequence at a time: it pads, and that may cost it more."""

    @classmethod
    def absent(cls, data_type: str, device: str) -> str | None:
        """Why the engine cannot run here in this type, None when it can."""
        if device not in cls.devices:
            return f"not for {device}"
        return cls.missing(cls.packages) if data_type in cls.types else f"no {data_type}"

    @staticmethod
    def missing(packages: tuple[str, ...]) -> str | None:
        """Which of some packages are not installed, None when all are."""
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        return f"{', '.join(absent)} not installed" if absent else None

    @classmethod
    def prepare(cls, device: str) -> None:
        """What is done once for all models, such as compiling. Raises BuildError when it fails."""
        return None

    @abstractmethod
    def __init__(self, source: Source, data_type: str, device: str, threads: int) -> None: ...

    @abstractmethod
    def bind(self, batch: Batch) -> Callable[[], Any]:
        """A call without arguments that runs the batch; what it returns goes to :meth:`valid`.

        Its result must stay intact while another bound call runs.
        """

    def valid(self, output: Any, batch: Batch) -> Tensor:
        """The valid tokens' last hidden states [tokens, H] on the CPU, out of what the call returned."""
        padded = torch.as_tensor(output).float().cpu()
        return torch.cat([padded[row, :length] for row, length in enumerate(batch.workload.lengths)])


ENGINES: dict[str, type[Engine]] = {}
"""By name, in the order in which tables list them."""


def register(kind: type[Engine]) -> type[Engine]:
    """Class decorator: put an engine into the table."""
    ENGINES[kind.name] = kind
    return kind


LOOP = "+loop"
"""Suffix of an engine's name that runs a batch one sequence at a time."""


def everything() -> list[str]:
    """The names of all engines, those that pad also one sequence at a time."""
    return [name + suffix for name, kind in ENGINES.items() for suffix in (("", LOOP) if kind.looped else ("",))]


class Loop(Engine):
    """Another engine, one sequence at a time without padding: the simplest way to avoid padding.

    Any claim for padding removal must beat it.
    """

    name = LOOP
    types = ()

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    def bind(self, batch: Batch) -> Callable[[], list[Any]]:
        """One call of the inner engine for each sequence."""
        calls = [self.inner.bind(row) for row in batch.rows()]
        return lambda: [call() for call in calls]

    def valid(self, output: Any, batch: Batch) -> Tensor:
        """See the base class."""
        pairs = zip(output, batch.rows(), strict=True)
        return torch.cat([self.inner.valid(part, row) for part, row in pairs])
