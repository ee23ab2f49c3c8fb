"""torch.export: ``model.pt2``. A graph in JSON and raw tensors beside it, run operator by operator.

torch.export's own loader would also unpickle objects and load compiled code. The builder writes neither, so a file with
either is refused before anything of it is read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from handler.archive import ArchiveError
from handler.formats import fakes

NAME = "model"
"""Of the one program within a file."""
_RECORDS = re.compile(
    rf"models/{NAME}\.json|data/weights/({NAME}_weights_config\.json|weight_\d+)|data/sample_inputs/{NAME}\.pt"
    rf"|data/constants/({NAME}_constants_config\.json|tensor_\d+)|archive_format|archive_version|byteorder|version"
    r"|\.data/\w+|\.format_version"
)
_SAMPLES = f"data/sample_inputs/{NAME}.pt"


def load(path: Path, device: torch.device) -> Any:
    """The module in a file, its tensors on ``device``, and so what its graph makes itself.

    Raises ArchiveError for a file that holds more than a graph and tensors, and what torch.export raises for one that
    it cannot read.
    """
    from torch.export.passes import move_to_device_pass

    _check_records(path)
    fakes.register()
    with _quiet():
        program = torch.export.load(path)
    if device.type != "cpu":  # where the program was made
        program = move_to_device_pass(program, str(device))
    return _plain(program)


def _plain(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The program's graph as a module, without what torch.export puts around every call: looks at the inputs' shapes,
    which handler/packing.py makes, and trees of arguments. That costs as much as a short text's encoder does in a
    quarter of its time.
    """
    module = program.module(check_guards=False)
    output = module.graph.output_node()
    if program.call_spec.out_spec is not None and program.call_spec.out_spec.is_leaf():
        output.args = (output.args[0][0],)  # type: ignore[index]
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    return torch.fx.GraphModule(module, module.graph)


def _check_records(path: Path) -> None:
    from torch.export.pt2_archive import PT2ArchiveReader

    with PT2ArchiveReader(str(path)) as reader:
        for name in reader.get_file_names():
            if not _RECORDS.fullmatch(name) or (name == _SAMPLES and reader.read_bytes(name)):
                raise ArchiveError(f"{path.name} holds {name}, which is neither graph nor tensor; build it again")
            if name.endswith("_config.json"):
                config = json.loads(reader.read_string(name))["config"]
                if pickled := [tensor for tensor, entry in config.items() if entry["use_pickle"]]:
                    raise ArchiveError(f"{path.name} holds {pickled[0]} as a pickle; build it again")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export.load logs the trace of what it is about to raise."""
    logger = logging.getLogger("torch.export")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
