"""A checkpoint's weights: which files hold them, read without running what they hold, and accounted for.

Every tensor of the files has a place in the model, or belongs to a head that the task does not use; every place of the
model is filled by one of the files. What is neither is refused, since transformers would drop it or draw it at random.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from builder import labels
from builder.errors import BuildError
from builder.files import first_line, read_json, refuse_pointer
from builder.quiet import quiet

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SHARD = re.compile(r"^(model|pytorch_model)-(\d{5})-of-(\d{5})\.(safetensors|bin)$")
_OTHERS = {
    "tf_model.h5": "TensorFlow", "flax_model.msgpack": "Flax", "model.onnx": "ONNX", "rust_model.ot": "Rust",
    "openvino_model.xml": "OpenVINO",
}  # fmt: skip
_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before every name."""
_NESTED = ("state_dict", "model_state_dict", "model")
"""Where training checkpoints keep the weights beside an optimizer's state."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))
"""Of a LayerNorm, in checkpoints converted from TensorFlow."""
_BUFFERS = ("position_ids", "token_type_ids")
"""Constants that older versions of transformers saved."""
_HEADS = ("classifier.", "score.")
_DRAWN_ANYWAY = "pooler."
"""The part of an encoder that belongs to one head only."""


def weight_files(folder: Path, source: str) -> list[Path]:
    """The files with a folder's weights, shards in order; safetensors where there is a choice.

    Raises BuildError where there are none or a shard is missing, saying what lies there instead.
    """
    for name in _SINGLE:
        kind = name.rsplit(".", 1)[1]
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _indexed(folder, f"{name}.index.json", source)
        if shards := sorted(path for path in folder.iterdir() if _SHARD.match(path.name) and path.suffix == f".{kind}"):
            return _complete(shards, source)
    for name, kind in _OTHERS.items():
        if (folder / name).exists():
            raise BuildError(f"{source}: only {kind} weights ({name}); save it as model.safetensors with transformers")
    raise BuildError(f"{source}: no model.safetensors or pytorch_model.bin in the checkpoint's folder")


def _indexed(folder: Path, index: str, source: str) -> list[Path]:
    names = read_json(folder / index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise BuildError(f"{source}: {index} has no weight_map of weights to files")
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name:
            raise BuildError(f"{source}: {index} names {name!r}, which is no file beside it")
        if not (folder / name).is_file():
            raise BuildError(f"{source}: {name}, which {index} names, is missing")
    return [folder / name for name in files]


def _complete(shards: list[Path], source: str) -> list[Path]:
    match = _SHARD.match(shards[0].name)
    assert match is not None
    if len(shards) != int(match[3]):
        raise BuildError(f"{source}: {len(shards)} of {int(match[3])} files of weights are there")
    return shards


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, of their digests in order."""
    each = []
    for path in files:
        with path.open("rb") as stream:
            each.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()


def read(files: Sequence[Path], source: str) -> dict[str, Tensor]:
    """All tensors by name, mapped into memory where the format allows.

    Raises BuildError for a file that is damaged, holds more than tensors, or names a tensor that another one holds.
    """
    state: dict[str, Tensor] = {}
    for path in files:
        refuse_pointer(path)
        tensors = _safetensors(path, source) if path.suffix == ".safetensors" else _pickled(path, source)
        if both := sorted(state.keys() & tensors.keys()):
            raise BuildError(f"{source}: two files hold {both[0]!r}, {path.name} is one of them")
        state.update(tensors)
    return state


def _safetensors(path: Path, source: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise BuildError(f"{source}: {path.name} is damaged ({first_line(error)}); copy it again") from error


def _pickled(path: Path, source: str) -> dict[str, Tensor]:
    """torch.save's file, tensors only: what else a pickle may hold is never run."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except Exception as error:  # whatever a damaged zip or pickle makes torch raise
        if "weights only" not in str(error).lower().replace("_", " "):
            raise BuildError(f"{source}: {path.name} is damaged ({first_line(error)}); copy it again") from error
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise BuildError(
            f"{source}: {path.name} holds more than tensors{f' ({what[1]})' if what else ''}, "
            "which may be code and is not loaded; save it as model.safetensors"
        ) from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)} if _is_state(content) else {}
    )
    if not tensors:
        raise BuildError(f"{source}: {path.name} holds no named tensors")
    return tensors


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(name, str) for name in content)


class Places:
    """A model's weights by name and shape, made without memory, and what a file's tensors are to it.

    ``unused``: the names that belong to heads of other tasks. ``renamed``: the file's names by the model's.
    """

    def __init__(self, model_class: Any, config: Any, extra: Mapping[str, Any], source: str) -> None:
        self.source = source
        self.config = config
        try:
            with quiet(), torch.device("meta"):
                model = model_class(config, **extra)
        except Exception as error:  # transformers and torch raise what the value makes them raise
            raise BuildError(f"{source}: config.json describes no model ({first_line(error)})") from error
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._prefix = f"{model.base_model_prefix}."
        encoder = getattr(model, model.base_model_prefix, model)
        self.wrapped = False
        """Whether the names of the files seen last were a wrapper's."""
        self._parts = tuple(f"{name}." for name, _ in encoder.named_children())
        ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        self._ignored = re.compile("|".join(ignored) or "$^")

    def _check_memory(self) -> None:
        """Of what is left where every weight of the files has its place: those that they lack would be made."""
        needed = 4 * sum(math.prod(shape) for shape in self.shapes.values())
        if needed > (there := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            raise BuildError(
                f"{self.source}: config.json describes a model of {needed / 2**30:,.0f} GiB, this machine has "
                f"{there / 2**30:.0f}"
            )

    def accepted(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """The tensors that have a place, by the model's names, and the names of those of other heads.

        Raises BuildError naming the first tensor that is none of either, has another shape, or another type.
        """
        state = self._unwrapped(state)
        taken: dict[str, Tensor] = {}
        unused, lost = [], []
        for name, tensor in state.items():
            place = self._place(name)
            if place is not None:
                taken[place] = self._checked(name, tensor, place)
            elif self._is_encoder(name):
                lost.append(name)
            elif not name.endswith(_BUFFERS):
                unused.append(name)
        if lost:
            raise BuildError(f"{self.source}: {self._about_lost(sorted(lost))}")
        self._check_memory()
        return taken, sorted(unused)

    def _unwrapped(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without a wrapper's prefix, where the names fit the model better so."""
        forms = [dict(state)]
        while prefix := next((p for p in _WRAPPERS if forms[-1] and all(n.startswith(p) for n in forms[-1])), None):
            forms.append({name.removeprefix(prefix): tensor for name, tensor in forms[-1].items()})
        best = max(forms, key=self._count)
        self.wrapped = best is not forms[0]
        return best

    def _count(self, names: Mapping[str, Tensor]) -> int:
        return sum(self._place(name) is not None for name in names)

    def _place(self, name: str) -> str | None:
        """The model's name for a file's: an encoder's may begin with the model's prefix in one and not in the other."""
        for old, new in _OLD_NAMES:
            if name.endswith(old) and name not in self.shapes:
                name = name.removesuffix(old) + new
        for candidate in (name, f"{self._prefix}{name}", name.removeprefix(self._prefix)):
            if candidate in self.shapes:
                return candidate
        return None

    def _is_encoder(self, name: str) -> bool:
        inner = name.removeprefix(self._prefix)
        inside = name != inner or inner.startswith(self._parts)
        dropped = inner.startswith(_DRAWN_ANYWAY) or inner.endswith(_BUFFERS) or self._ignored.search(name)
        return inside and not dropped

    def _checked(self, name: str, tensor: Tensor, place: str) -> Tensor:
        if tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise BuildError(f"{self.source}: weight {name!r} is {kind}; only fp32, fp16, bf16 and fp64 are read")
        expected, found = self.shapes[place], tuple(tensor.shape)
        if found != expected:
            if place.startswith(_HEADS):
                labels.check_rows([(name, found, expected)], self.config, self.source)
            raise BuildError(f"{self.source}: weight {name!r} is {list(found)}, {self._says(expected, found)}")
        return tensor

    def _says(self, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
        """What config.json makes of a weight, with the keys whose values differ."""
        sizes = [size for size, other in zip(expected, found, strict=False) if size != other]
        content = self.config.to_dict()
        keys = [key for key, value in content.items() if isinstance(value, int) and value in sizes and value > 1]
        if not keys and getattr(self.config, "num_labels", None) in sizes:
            keys = ["id2label"]
        stated = [key if key == "id2label" else f"{key} {content[key]}" for key in keys]
        return f"config.json says {list(expected)}" + (f" ({', '.join(stated)})" if stated else "")

    def _about_lost(self, lost: list[str]) -> str:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        layers = [int(number) for name in lost for number in re.findall(r"\.(\d+)\.", name)[:1]]
        count = getattr(self.config, "num_hidden_layers", None)
        question = "is config.json that of these weights?"
        if layers and count and max(layers) >= count:
            have = f"the weights have {max(layers) + 1} layers ({lost[0]}{more})"
            return f"num_hidden_layers is {count}, but {have}; {question}"
        return f"config.json has no place for the weights {lost[0]}{more}; {question}"


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raises BuildError naming the first weight with a value that is no finite number."""
    for name, tensor in state.items():
        # Smallest and largest are NaN where a value is: one pass, and no mask of the weight's size.
        if tensor.numel() and not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
            bad = int((~tensor.isfinite()).sum())
            raise BuildError(f"{source}: weight {name!r} holds {bad} values that are NaN or infinite")


def fill(
    model_class: Any, config: Any, state: dict[str, Tensor], dtype: torch.dtype, extra: Mapping[str, Any]
) -> tuple[nn.Module, list[str]]:
    """transformers' model with these tensors, in evaluation mode, and the names of the weights it had to draw."""
    with quiet():
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, local_files_only=True,
            trust_remote_code=False, weights_only=True, **extra,
        )  # fmt: skip
    return model.eval(), sorted(info["missing_keys"])
