"""The README's chart: BERT-base in milliseconds, engine by engine, on two CPU cores and on one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed or looked for
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

WIDTH, HEIGHT, DPI = 9.0, 3.4, 110
CPU, GPU = "8x128", "32x384"
_OURS, _OTHER = "#cf222e", "#8c959f"
_NAMES = {
    "ori": "transformers", "ths": "TorchScript", "compile": "torch.compile", "packed": "PyTorch, packed",
    "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "ctranslate2": "CTranslate2", "thsext": "EFFT",
}  # fmt: skip
"""Engines that a user would pick, by the benchmarks' names."""
_OURS_IN = {"fp32": ("fp32", "bf16", "int8"), "fp16": ("fp16", "fp8", "int8")}
"""Our types that stand beside the others' one."""
Bar = tuple[str, float, bool]
"""Label, milliseconds, whether it is ours."""


def bars(result: dict[str, Any], workload: str, peers: str) -> list[Bar]:
    """BERT-base at ``workload``, the slowest first: other engines in the type ``peers``, ours in narrower ones too."""
    found: dict[str, Bar] = {}
    for row in result["rows"]:
        if row["model"] != "base" or row["workload"] != workload or "median_ms" not in row or row.get("refused"):
            continue
        ours = row["engine"] == "thsext"
        if row["engine"] not in _NAMES or row["data_type"] not in (_OURS_IN[peers] if ours else (peers,)):
            continue
        label = f"{_NAMES[row['engine']]}, {row['data_type']}"
        found[label] = (label, row["median_ms"], ours)
    return sorted(found.values(), key=lambda bar: -bar[1])


def draw(cpu: dict[str, Any], gpu: dict[str, Any], path: Path) -> None:
    """Write the chart of two results of kind encoder, one of each device."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT))
    _panel(panels[0], bars(cpu, CPU, "fp32"), f"two CPU cores, {CPU}")
    _panel(panels[1], bars(gpu, GPU, "fp16"), f"one {gpu['device']['gpu'].removeprefix('NVIDIA ')}, {GPU}")
    figure.tight_layout()
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def _panel(axes: Axes, shown: list[Bar], title: str) -> None:
    colours = [_OURS if ours else _OTHER for _, _, ours in shown]
    drawn = axes.barh([label for label, _, _ in shown], [value for _, value, _ in shown], color=colours)
    labels = [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for _, value, _ in shown]
    axes.bar_label(drawn, labels, padding=3, fontsize=8)
    axes.set_title(f"{title}, milliseconds", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
