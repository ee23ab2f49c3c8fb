"""Loads an archive's model: libraries, device, weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handler import gemm_config
from handler.archive import ArchiveError, ArchiveFacts
from handler.config import SetupConfig
from handler.formats import load_module
from handler.formats.weights import share
from handler.graphs import Graphs, as_column, graphs_of
from handler.integrity import sha256
from handler.packing import Arrays, Model
from handler.threads import Placement
from handler.transfer import Staging

logger = logging.getLogger(__name__)

CPU_LIBRARY = "libefft_cpu.so"
ADAPTERS = "adapters"
"""The folder within an archive that holds those beyond the first."""
SAFE_TORCH = "2.10"
"""The oldest torch that loads any archive, whatever it says itself: in earlier ones a crafted file corrupts memory even
where only weights are unpickled (CVE-2026-24747)."""
WORD_TABLES = ("encoder.word", "word_embeddings.weight")
"""What the fused encoder and transformers call it."""
_loaded: dict[str, str] = {}
"""Library name -> digest of the one this process has loaded: an operator can be registered only once."""


class TracedModel:
    """A traced or exported model on a device.

    ids, segments, mask: int64 [B, S] in numpy, or packed where the module ``takes_packed`` ids; the outputs are fp32
    arrays as the task defines them. See handler.packing.Model.
    """

    def __init__(
        self, module: Any, device: torch.device, *, takes_packed: bool = False, graphs: Graphs | None = None
    ) -> None:
        self.module = module
        self.device = device
        self.takes_packed = takes_packed
        self.graphs = graphs
        """For passes that they take; only of a module whose tensors stay where they are."""
        self._staging = Staging(device)
        self.vocabulary = word_rows(module)

    def __call__(self, ids: np.ndarray, segments: np.ndarray, mask: np.ndarray) -> Arrays:
        """See the class."""
        if self.graphs is not None and (outputs := self.graphs(ids, segments, mask)) is not None:
            return outputs
        with torch.inference_mode():
            inputs = self._staging.to_device((ids, segments, mask))
            if ids.ndim == 1:
                inputs[2] = as_column(inputs[2], int((mask[1:] - mask[:-1]).max()))
            return self._staging.to_host(self.module(*inputs))


def word_rows(module: Any) -> int | None:
    """Rows of a loaded module's word table: an id beyond them would take a GPU down. None where it has another name."""
    tables = (tensor for name, tensor in module.state_dict().items() if name.endswith(WORD_TABLES))
    return next((len(table) for table in tables), None)


def load_model(folder: Path, facts: ArchiveFacts, config: SetupConfig, gpu: int | None = None) -> Model:
    """The archive's model on the best device allowed, its weights prepared.

    ``gpu``: the device index the server assigned, None for the CPU. Raises ArchiveError in one line that says what
    to do.
    """
    check_torch(facts.torch.oldest)
    device = pick_device(facts, config, gpu)
    if facts.model.format == "transformers":
        from handler.original import OriginalModel

        return OriginalModel(folder / facts.model.file, facts, device)
    if facts.encoder == "fused":
        _load_libraries(folder, facts, device)
        if device.type == "cuda":
            with torch.cuda.device(device):
                gemm_config.use(folder)
    model = _traced(load_module(folder, facts, device), facts, device)
    logger.info("%s runs on %s", facts.name, _place(facts, device))
    return model


def load_adapters(folder: Path, facts: ArchiveFacts, first: Model) -> dict[str, tuple[ArchiveFacts, Model]]:
    """What each further adapter of an archive is served with, by name, on the device of the ``first`` one's model, with
    which they share the tensors that are equal. Raises ArchiveError in one line that says what to do."""
    found: dict[str, tuple[ArchiveFacts, Model]] = {}
    for name in facts.adapters[1:]:
        own = ArchiveFacts.load(folder / ADAPTERS / name / "archive.json")
        if _kind(own) != _kind(facts) or not isinstance(first, TracedModel):
            raise ArchiveError(f"adapter {name} is of another kind than the archive; build the archive again")
        module = load_module(folder / ADAPTERS / name, own, first.device)
        share(module, first.module)
        found[name] = own, _traced(module, own, first.device)
    return found


def _traced(module: Any, facts: ArchiveFacts, device: torch.device) -> TracedModel:
    """Of a module whose weights are prepared and shared."""
    packed, fused = facts.model.packed, facts.encoder == "fused"
    graphs = graphs_of(module, device, packed=packed, fused=fused, longest=facts.max_positions)
    return TracedModel(module, device, takes_packed=packed, graphs=graphs)


def _kind(facts: ArchiveFacts) -> tuple[object, ...]:
    """What the archive's packer and task take to be one for all adapters."""
    return facts.task, facts.encoder, facts.model.packed


def _place(facts: ArchiveFacts, device: torch.device) -> str:
    """For the log: the device, the type, and the library that computes there."""
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    libraries = [name for name, library in facts.libraries.items() if library.device == device.type]
    return f"{name} in {facts.data_type} with {', '.join(libraries) or 'torch alone'}"


def check_torch(oldest: str) -> None:
    """Raises ArchiveError where the installed torch is older than the archive needs or than is safe."""
    oldest = max(oldest, SAFE_TORCH, key=_version)
    if _version(torch.__version__) < _version(oldest):
        raise ArchiveError(f"torch {torch.__version__} is too old for this archive; install torch {oldest} or newer")


def pick_device(facts: ArchiveFacts, config: SetupConfig, gpu: int | None) -> torch.device:
    """The assigned GPU where the archive can run on it, else the CPU where the config allows that."""
    if gpu is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        problem = f"GPU {gpu} is assigned, but torch {torch.__version__} finds none"
        if not config.cpu_fallback:
            raise ArchiveError(f"{problem}; install a torch with CUDA, or set cpu_fallback")
        logger.warning("%s; serving on the CPU", problem)
        return torch.device("cpu")
    capability = torch.cuda.get_device_capability(gpu)
    cuda = [library for library in facts.libraries.values() if library.device == "cuda"]
    fitting = facts.encoder == "stock" or any(fits(capability, library.targets) for library in cuda)
    if fitting and "cuda" in facts.model.devices:
        return torch.device("cuda", gpu)
    chip = "{}.{}".format(*capability)
    targets = ", ".join(target for library in cuda for target in library.targets) or "none"
    problem = f"the archive has no library for compute capability {chip} (it has: {targets})"
    remedy = "build it again with that target"
    if not config.cpu_fallback:
        raise ArchiveError(f"{problem}; {remedy}, or set cpu_fallback")
    logger.warning("%s; serving on the CPU", problem)
    return torch.device("cpu")


def fits(capability: tuple[int, int], targets: Iterable[str]) -> bool:
    """Whether a CUDA library compiled for ``targets`` ("80", "90a") runs on a chip.

    Code for x.y runs on x.z with z >= y; "a" targets run on that chip only; PTX of the newest plain target runs on
    every later chip (CUDA C++ Programming Guide, "Application Compatibility").
    """
    major, minor = capability
    plain = [int(target) for target in targets if target.isdigit()]
    if any(target == f"{major}{minor}a" for target in targets):
        return True
    if any(target // 10 == major and target % 10 <= minor for target in plain):
        return True
    return bool(plain) and 10 * major + minor >= max(plain)


def set_threads(placement: Placement) -> None:
    """Let torch and the tokenizer run as many threads as the worker has been given."""
    torch.set_num_threads(placement.threads)
    # The tokenizer's pool is made at its first use, as large as the machine where nothing is said.
    os.environ.setdefault("RAYON_NUM_THREADS", str(placement.threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if placement.threads > 1 else "false")


def _load_libraries(folder: Path, facts: ArchiveFacts, device: torch.device) -> None:
    """The CPU library first, as it defines the operators' schemas."""
    names = sorted(facts.libraries, key=lambda name: name != CPU_LIBRARY)
    for name in names:
        if facts.libraries[name].device in ("cpu", device.type):
            _load_library(folder / name, facts.libraries[name].sha256)


def _load_library(path: Path, digest: str) -> None:
    if not path.exists():
        raise ArchiveError(f"{path.name} is missing from the archive; build it again")
    if sha256(path) != digest:
        raise ArchiveError(f"{path.name} is not the file the archive was built with; build it again")
    loaded = _loaded.get(path.name) or _loaded_elsewhere(path.name)
    if loaded == digest:
        return
    if loaded is not None:
        raise ArchiveError(f"another {path.name} is loaded in this process; start a process per archive")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ArchiveError(f"{path.name} does not load ({error}); build the archive on this platform") from error
    _loaded[path.name] = digest


def _loaded_elsewhere(name: str) -> str | None:
    """The digest of a library of this name that another part of the process has loaded, from whatever folder."""
    for path in map(Path, torch.ops.loaded_libraries):
        if path.name == name:
            return sha256(path) if path.exists() else "unknown"
    return None


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
