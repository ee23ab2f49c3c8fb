"""What it costs that a batch's requests have several adapters, beside the same batch for one.

``python -m benchmarks.adapters`` prints a line for each batch and writes ``adapters-DEVICE-DATE.json``;
``python -m benchmarks tables docs/archives.md`` puts the table there. A classifier of a published size, random weights,
one copy of it for each adapter, as a worker holds them, through the packer that a worker's requests go through: from
ids in the host's memory to logits there. Adapters are dealt out in turns.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence as Many
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import libraries, machine, results, table
from benchmarks.engines.native import packed_weights
from benchmarks.models import SIZES, Source, load_source
from benchmarks.timing import CLOCKS, Turns
from builder.encoder import PackedEncoder, prepare
from builder.families import spec_of
from builder.formats.torchscript import example_inputs, save_torchscript
from builder.models import PackedModel
from handler.engine import default_pass_tokens
from handler.graphs import graphs_of
from handler.metrics import Metrics
from handler.packing import Packer
from handler.runtime import TracedModel
from handler.tokenizer import Sequence

TYPES = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp16", "fp8")}
BATCHES = ("32x16", "8x128", "32x64", "32x128")
COUNTS = (1, 2, 4)
_LABELS = 6


class _Head(nn.Module):
    """BERT's: a dense layer, tanh and the labels, in fp32."""

    pointwise = True

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, _LABELS))

    def forward(self, pooled: Tensor, mask: Tensor) -> Tensor:
        return self.layers(pooled.float())


def adapters(source: Source, data_type: str, device: str, count: int) -> list[TracedModel]:
    """Models of the same shape, each with weights of its own, on the device and prepared as a worker does."""
    spec, where = spec_of(source.config), torch.device("cuda:0" if device == "cuda" else device)
    weights = packed_weights(source, data_type, device)
    module = PackedModel(PackedEncoder(spec, weights, "first"), _Head(spec.hidden), splits=False, marks_prompts=False)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        save_torchscript(module.eval(), example_inputs(source.config.vocab_size, 2, 16), path)
        for _ in range(count):
            loaded: Any = torch.jit.load(str(path), map_location=device).eval()
            loaded.encoder.matrices = prepare(spec, loaded.encoder).matrices
            longest = source.config.max_position_embeddings
            graphs = graphs_of(loaded, where, packed=True, fused=True, longest=longest)
            found.append(TracedModel(loaded, where, takes_packed=True, graphs=graphs))
    return found


def packer(models: Many[TracedModel]) -> Packer:
    """As the engine makes it of an archive with several adapters."""
    tokens = default_pass_tokens(models[0].device)
    named: Any = {str(place): model for place, model in enumerate(models)}
    return Packer(
        models[0], pad_id=0, max_tokens=tokens, keep=None, packed=True, metrics=Metrics(),
        vocabulary=models[0].vocabulary, most_cells=4 * tokens, adapters=named,
    )  # fmt: skip


def batch(size: str, count: int, vocabulary: int) -> list[Sequence]:
    """Random texts of one length, their adapters in turns."""
    rows, length = map(int, size.split("x"))
    generator = np.random.default_rng(0)
    ids = generator.integers(1, vocabulary, (rows, length)).tolist()
    return [Sequence(own, adapter=str(row % count)) for row, own in enumerate(ids)]


def measure(source: Source, data_type: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each batch and number of adapters: milliseconds, and how many times those of one adapter."""
    device, counts = options.device, sorted({1, *options.adapters})
    run = packer(adapters(source, data_type, device, counts[-1])).run
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    rows = []
    for size in options.batches:
        calls = {str(count): partial(run, batch(size, count, source.config.vocab_size)) for count in counts}
        for call in [*calls.values()] * 3:  # what is captured is by the third call
            _check(call())
        turns = Turns(calls, synchronize=wait, clock=CLOCKS[options.clock], seed=random.randrange(2**31))
        turns.run(options.rounds)
        timings = turns.timings()
        for count in counts:
            taken = timings[str(count)]
            ratio = taken.median / timings["1"].median
            about = {"model": source.name, "data_type": data_type, "batch": size, "adapters": count}
            rows.append({**about, **asdict(taken), "over_one": round(ratio, 3)})
        said = ", ".join(
            f"{row['adapters']}: {row['median']:.3f} ({row['over_one']:.2f})" for row in rows[-len(counts) :]
        )
        print(f"{source.name} {data_type} {size}: ms by adapters {said}", flush=True)
    return rows


def _check(outputs: Many[Any]) -> None:
    """A pass that failed is an answer to the packer, and would be timed as one. Raises RuntimeError for it."""
    for output in outputs:
        if not isinstance(output, tuple) or not np.isfinite(output[0]).all():
            raise RuntimeError(f"a pass failed: {output}")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__)
    parser.add_argument("--device", choices=tuple(TYPES), default="cpu")
    parser.add_argument("--models", nargs="+", choices=tuple(SIZES), default=["minilm", "base"])
    parser.add_argument("--types", nargs="+", help=f"default: {TYPES}")
    parser.add_argument("--batches", nargs="+", metavar="TEXTSxTOKENS", default=list(BATCHES))
    parser.add_argument("--adapters", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clock", choices=tuple(CLOCKS), help="default: on a CPU processor time, of one thread")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    options.clock = options.clock or ("cpu" if options.device == "cpu" else "wall")
    if options.clock == "cpu":
        torch.set_num_threads(1)
    libraries.load(options.device)
    rows = []
    for model in options.models:
        source = load_source(model)
        for data_type in options.types or TYPES[options.device]:
            rows += measure(source, data_type, options)
    settings = {"clock": options.clock, "statistic": "medians of rounds in turns", "rounds": options.rounds}
    facts = machine.facts(options.device, torch.get_num_threads())
    path = results.save("adapters", {**facts, "settings": settings, "rows": rows}, options.output)
    table.print_all(results.load(path))
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
