"""What int8's mode 2 and 2:4 sparsity cost, emulated: ``python -m benchmarks.accuracy.unbuilt``.

The cosines are those of the builder's gate, of MiniLM and of the ticket sample; the dev figures are the sample's.
Weights are pruned by magnitude, without training afterwards, which is what a user has who only wants it faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks import machine, results, table
from builder.checkpoint import Checkpoint, load
from builder.models import encoder_of
from builder.quantisation import unbuilt
from builder.quantisation.eight_bits import expected_states, gate_inputs, measure_own, rounder_of
from builder.quantisation.emulated import emulated
from handler.config import SetupConfig
from samples.base import base_folder
from samples.build import build
from samples.cli import SAMPLES

SAMPLE = "ticket_routing"
Variant = Callable[[Checkpoint, nn.Module, list[Any]], AbstractContextManager[None]]


def _int8(checkpoint: Checkpoint, base: nn.Module, batches: list[Any]) -> AbstractContextManager[None]:
    return emulated(checkpoint, base, rounder_of(checkpoint, base, "int8", batches), ())


def _residual(
    checkpoint: Checkpoint, base: nn.Module, _batches: list[Any], products: bool = False
) -> AbstractContextManager[None]:
    judged = [batch for _, batch in gate_inputs(checkpoint, None)[1]]
    return unbuilt.integer_residual(base, unbuilt.residual_steps(checkpoint, base, judged, products=products))


def _sparse(checkpoint: Checkpoint, base: nn.Module, _batches: list[Any]) -> AbstractContextManager[None]:
    unbuilt.prune24(checkpoint, base)
    return nullcontext()


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "fp32": (),
    "int8, mode 1: every matrix, residual in fp32": (_int8,),
    "residual in int8 alone": (_residual,),
    "int8, mode 2: every matrix and the residual": (_int8, _residual),
    "the same, products' results that are added to it too": (_int8, partial(_residual, products=True)),
    "2:4 by magnitude, fp32": (_sparse,),
}
"""What is changed, in this order; the last one for good."""


def rows(name: str, config: SetupConfig) -> Iterator[dict[str, Any]]:
    """A row for each variant of a model."""
    checkpoint = load(config)
    model = checkpoint.load_model()
    base = encoder_of(checkpoint, model)
    output = unbuilt.pooled(checkpoint)
    chosen, inputs = gate_inputs(checkpoint, None)
    cases = expected_states(checkpoint, base, inputs)
    for variant, changes in VARIANTS.items():
        batches = [batch for _, batch in chosen.inputs]
        with ExitStack() as stack:
            entered = [change(checkpoint, base, batches) for change in changes]  # all measured before any rounds
            for context in entered:
                stack.enter_context(context)
            found = measure_own(checkpoint, base, cases, output)
            dev = SAMPLES[name].evaluate(model, checkpoint.load_tokenizer()) if name in SAMPLES else {}
        yield {"model": name, "variant": variant, "token": found.token, "pooled": found.pooled, **dev}


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.unbuilt", description=__doc__)
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    found = []
    models = {
        "minilm": {"model_name": str(base_folder()), "task": "embedding"},
        SAMPLE: {"model_name": str(build(SAMPLES[SAMPLE])), "max_length": 128},
    }
    for name, settings in models.items():
        for row in rows(name, SetupConfig.model_validate(settings)):
            print(row, flush=True)
            found.append(row)
    result = {**machine.facts("cpu", machine.threads_available()), "rows": found}
    path = results.save("unbuilt", result, options.output)
    table.print_all(results.load(path))
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
