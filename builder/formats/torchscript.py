"""Write a model as TorchScript."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from builder.quiet import quiet


def example_inputs(vocabulary: int, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, segments and mask, int64 [batch, length], the last row half as long as the others."""
    ids = torch.arange(batch * length).reshape(batch, length) % vocabulary
    mask = torch.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    return ids * mask, torch.zeros_like(ids), mask


def save_torchscript(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Trace ``module`` on ``inputs`` and save it; the parity gate, not the tracer, checks that it holds in general."""
    with torch.inference_mode(False), torch.no_grad(), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, inputs, check_trace=False, strict=False)
        _follow_inputs(traced)
        traced_file = path.with_suffix(".traced")
        torch.jit.save(traced, str(traced_file))
    _without_sources(traced_file, path)
    traced_file.unlink()


def _follow_inputs(traced: torch.jit.ScriptModule) -> None:
    """Let the tensors that a trace makes itself, such as transformers' attention mask, be made where its inputs are.

    The tracer writes down the device it ran on, and ``map_location`` moves weights only: on a GPU a file traced on a
    CPU would mix the two.
    """
    parts: Any = traced.modules()
    for part in parts:
        for method in part._c._method_names():
            graph = part._c._get_method(method).graph
            fixed = [node.output() for node in graph.findAllNodes("prim::Constant") if _is_device(node.output())]
            tensors = [value for value in graph.inputs() if value.type().isSubtypeOf(torch._C.TensorType.get())]
            if not fixed or not tensors:
                continue
            followed = graph.create("prim::device", tensors[:1], 1)
            followed.output().setType(torch._C.DeviceObjType.get())
            graph.prependNode(followed)
            for value in fixed:
                value.replaceAllUsesWith(followed.output())


def _is_device(value: torch._C.Value) -> bool:
    return value.type().kind() == "DeviceObjType"


def _without_sources(source: Path, target: Path) -> None:
    """Copy a TorchScript file less its ``debug_pkl`` records, which hold the building machine's paths."""
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    for name in reader.get_all_records():
        # The writer makes a version and an id of its own.
        if not name.endswith(".debug_pkl") and name not in ("version", "byteorder", ".data/serialization_id"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_record("byteorder", b"little", len(b"little"))
    writer.write_end_of_file()
