"""Pooling and layers of an embedding model, traced on the CPU as the builder does, on a GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from builder.formats.torchscript import save_torchscript
from builder.sentence_transformers.head import Dense, Normalize, SentenceHead
from handler.config import POOLINGS


def test_a_head_made_on_the_cpu_runs_on_a_gpu(tmp_path: Path) -> None:
    torch.manual_seed(3)
    layers = [Dense(nn.Linear(6 * 16, 24), nn.Tanh(), None), nn.LayerNorm(24), Normalize()]
    head = SentenceHead(POOLINGS, layers).eval()
    save_torchscript(head, (torch.randn(2, 4, 16), torch.ones(2, 4, dtype=torch.int64)), tmp_path / "head.pt")
    hidden = torch.randn(3, 9, 16)
    mask = torch.tensor([[2, 2, 1, 1, 1, 1, 1, 1, 1], [1] * 5 + [0] * 4, [2] + [1] * 7 + [0]])
    with torch.inference_mode():
        there = torch.jit.load(tmp_path / "head.pt", map_location="cuda")(hidden.cuda(), mask.cuda()).cpu()
        torch.testing.assert_close(there, head(hidden, mask))
