"""PEFT adapters: found beside their base's weights or pointing at a folder of them, and merged when loaded."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from builder.errors import BuildError
from builder.files import first_line, read_json
from builder.foreign import refuse_foreign_files
from builder.quiet import quiet
from builder.weights import check_finite, read

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_TASKS = {
    "SEQ_CLS": "sequence_classification",
    "TOKEN_CLS": "token_classification",
    "QUESTION_ANS": "question_answering",
    "FEATURE_EXTRACTION": "embedding",
}
_OUTPUTS = re.compile(r"\b(classifier|classifier\.out_proj|qa_outputs|score)\.weight$")


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, the folder of its base, and the task it was trained for where it says so."""

    folder: Path
    base: Path
    weights: Path
    task: str | None
    source: str

    @property
    def outputs(self) -> int | None:
        """Labels of the head that comes with the adapter; None where none does."""
        for name, tensor in self.read().items():
            if _OUTPUTS.search(name):
                return int(tensor.shape[0])
        return None

    def read(self) -> dict[str, Tensor]:
        """The adapter's tensors by PEFT's names. Raises BuildError."""
        return read([self.weights], self.source)

    def without_own(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base's tensors less those in whose place the adapter has its own, such as a head for other labels."""
        own = tuple(self.read())
        return {name: tensor for name, tensor in base.items() if not any(given.endswith(f".{name}") for given in own)}

    def merged(self, model: nn.Module, drawn: list[str]) -> nn.Module:
        """The base model with the adapter folded in; ``drawn`` names the weights that its base did not hold.

        Raises BuildError where PEFT is not installed, a kind of adapter cannot be folded in, or tensors are left over.
        """
        try:
            from peft import PeftModel, get_peft_model_state_dict
        except ImportError as error:
            raise BuildError(f"{self.source} is a PEFT adapter; pip install peft to have it merged") from error
        tensors = self.read()
        check_finite(tensors, self.source)
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrapped = PeftModel.from_pretrained(model, str(self.folder), local_files_only=True)
                places = get_peft_model_state_dict(wrapped)
                merged = wrapped.merge_and_unload()
        except Exception as error:  # PEFT raises what a config or a tensor that does not fit makes it raise
            raise BuildError(f"{self.source}: the adapter cannot be merged ({first_line(error)})") from error
        if lost := sorted(tensors.keys() ^ places.keys()):
            raise BuildError(f"{self.source}: adapter and base do not fit together ({lost[0]}); is it another base?")
        for name in drawn:
            if not any(given.endswith(name) for given in tensors):
                raise BuildError(f"{self.source}: neither the adapter nor its base has the weight {name!r}")
        return merged.eval()


def find_adapter(folder: Path, source: str, locate: Callable[[str], Path]) -> Adapter | None:
    """The adapter in a checkpoint's folder, None where there is none.

    Its base is the folder itself where it holds a config and weights, else what ``base_model_name_or_path`` says: a
    folder, absolute or beside the adapter's, or a hub name, which ``locate`` finds. Raises BuildError where it is none.
    """
    if not (folder / CONFIG).exists():
        return None
    content = read_json(folder / CONFIG)
    weights = _weights(folder, source)
    base = _base(folder, content, source, locate)
    return Adapter(folder, base, weights, _TASKS.get(str(content.get("task_type"))), source)


def chosen_adapter(name: str, base: Path, source: str) -> Adapter:
    """The adapter that a user names: its folder, or one within the folder of its base.

    Raises BuildError where it is neither, or ``base`` is an adapter's own folder.
    """
    if (base / CONFIG).exists():
        raise BuildError(f"{source} is an adapter itself; give its base as the model, or leave adapter {name!r} out")
    for folder in (Path(name).expanduser(), base / name):
        if (folder / CONFIG).is_file():
            shown = f"{source}, adapter {folder.name}"
            refuse_foreign_files(folder, shown)
            content = read_json(folder / CONFIG)
            return Adapter(
                folder.resolve(), base, _weights(folder, shown), _TASKS.get(str(content.get("task_type"))), shown
            )
    raise BuildError(f"{source}: adapter {name!r} is no folder with {CONFIG}, here or within the model's")


def _weights(folder: Path, source: str) -> Path:
    weights = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if weights is None:
        raise BuildError(f"{source}: {CONFIG} without {' or '.join(_FILES)}")
    return weights


def _base(folder: Path, content: dict[str, Any], source: str, locate: Callable[[str], Path]) -> Path:
    names = os.listdir(folder)
    if "config.json" in names and any(re.match(r"(model|pytorch_model)\b.*\.(safetensors|bin)$", n) for n in names):
        return folder
    name = content.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise BuildError(f"{source} is an adapter without its base model; put it beside the base's files")
    for candidate in (Path(name).expanduser(), folder / name, folder.parent / name):
        if (candidate / "config.json").is_file() and candidate.resolve() != folder:
            return candidate.resolve()
    try:
        return locate(name)
    except BuildError as error:
        raise BuildError(
            f"{source} is an adapter without its base model {name!r}, which is no folder here; put the adapter beside "
            f"the base's files, or merge the two with PEFT's merge_and_unload ({first_line(error, 120)})"
        ) from error
