"""Write a model with torch.export, of any batch size and any length."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from builder.quiet import quiet

_KEPT = ("val",)
"""What a node says of its result. The rest is where its line stands in a source on the building machine."""


def save_export(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Export ``module`` and save it; the first two dimensions of each input may be of any size.

    As with a trace it is the parity gate that checks that the graph holds in general.
    """
    with torch.inference_mode(False), torch.no_grad(), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in inputs)
        program = torch.export.export(module, inputs, dynamic_shapes=sizes, strict=False)
        _tidy(program.graph_module)
        program._example_inputs = None  # they would be pickled, and nobody asks for them
        torch.export.save(program, path)


def _tidy(graph_module: torch.fx.GraphModule) -> None:
    for part in graph_module.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in list(part.graph.nodes):
            node.meta = {key: value for key, value in node.meta.items() if key in _KEPT}
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                part.graph.erase_node(node)  # of a tensor's device, among others, which is the worker's to choose
        part.recompile()
