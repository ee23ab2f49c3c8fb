"""Every engine that can be measured; importing this package imports none of the peers' packages."""

from benchmarks.engines import ctranslate, native, onnx_runtime, openvino_runtime, packed
from benchmarks.engines.base import ENGINES, LOOP, Engine, Loop, everything

__all__ = [
    "ENGINES",
    "LOOP",
    "Engine",
    "Loop",
    "everything",
    "ctranslate",
    "native",
    "onnx_runtime",
    "openvino_runtime",
    "packed",
]
