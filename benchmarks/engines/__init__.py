"""Every engine that can be measured; importing this package imports none of the peers' packages."""

# Tables list engines in the order of these imports.
from benchmarks.engines import native, packed

# isort: split
from benchmarks.engines import ctranslate, onnx_runtime, openvino_runtime
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
