"""Write a model as TorchScript. A second format would be one more function beside :func:`save_torchscript`."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


def example_inputs(vocabulary: int, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, segments and mask, int64 [batch, length], the last row half as long as the others."""
    ids = torch.arange(batch * length).reshape(batch, length) % vocabulary
    mask = torch.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    return ids * mask, torch.zeros_like(ids), mask


def save_torchscript(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], path: Path) -> None:
    """Trace ``module`` on ``inputs`` and save it; the parity gate, not the tracer, checks that it holds in general."""
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, inputs, check_trace=False, strict=False)
        traced_file = path.with_suffix(".traced")
        torch.jit.save(traced, str(traced_file))
    _without_sources(traced_file, path)
    traced_file.unlink()


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
