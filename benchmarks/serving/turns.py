"""Archives against each other under TorchServe, in turns: the greatest rate of which 95 % are answered within a limit.

    python -m benchmarks.serving.turns BEFORE.mar AFTER.mar --p95 100 --rounds 3

Each archive has its own handler and its own settings inside, so archives that two commits have built compare the
commits. Every round serves each of them once, in another order; the texts are the sample's, joined to mixed lengths.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import requests

from benchmarks import machine, results
from benchmarks.accuracy.datasets import read_labels
from benchmarks.serving import inputs, prepare, search
from benchmarks.serving.load import Target
from benchmarks.serving.runs import find
from benchmarks.serving.servers import Served, TorchServe

_ASKED = 20


def answers(target: Target, texts: list[str]) -> list[str]:
    """The labels of some of the texts."""
    found = []
    for text in texts[:: max(1, len(texts) // _ASKED)]:
        answer = requests.post(target.url + target.path, json={"text": text}, headers=target.headers, timeout=60)
        answer.raise_for_status()
        found.append(str(answer.json()["label"]))
    return found


def measure(archives: list[Path], texts: list[str], options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each archive and round: the greatest rate kept, and each rate tried."""
    payloads = [{"text": text} for text in texts]
    labels: dict[Path, list[str]] = {}
    rows: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for archive in archives if number % 2 == 0 else archives[::-1]:

            def check(served: Served, archive: Path = archive) -> None:
                labels[archive] = answers(served.target, texts)

            served = TorchServe(archive, folder / f"{archive.stem}-{number}")
            tried = list(find(served, check, payloads, options.p95, options.seconds))
            kept = [row["achieved"] for row in tried if search.within(row, options.p95)]
            cost = [statistics.median(row["processor_ms"].get(part, 0.0) for row in tried) for part in _PARTS]
            row = {"server": archive.stem, "round": number, "kept": max(kept, default=0.0)}
            rows.append({**row, "processor_ms": dict(zip(_PARTS, cost, strict=True)), "tried": tried})
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "tried"}), flush=True)
    different = sum(len(set(column)) > 1 for column in zip(*labels.values(), strict=True))
    print(f"labels that differ: {different} of {len(next(iter(labels.values())))}")
    return rows


_PARTS = ("front_end", "workers", "load_generator")


def main() -> int:
    """Print each round and the medians' ratios to the first archive's; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path, help="of different names; the first is what the others beat")
    parser.add_argument("--p95", type=float, default=100, help="milliseconds")
    parser.add_argument("--mix", choices=inputs.MIXES, default="uniform")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each rate")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")
    options = parser.parse_args()
    own = [example.payload["text"] for example in read_labels(machine.ROOT / "samples" / "data" / "tickets.tsv")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(options.archives[0]) as packed:
            tokenizer = Path(packed.extract("tokenizer.json", folder))
        texts = inputs.texts_of(options.mix, own, tokenizer, 128)
        rows = measure(options.archives, texts, options, folder)
        tokens = round(inputs.mean_tokens(texts, tokenizer), 1)
    medians = {
        archive.stem: statistics.median(row["kept"] for row in rows if row["server"] == archive.stem)
        for archive in options.archives
    }
    first = medians[options.archives[0].stem]
    for name, rate in medians.items():
        print(f"{name}: {rate:.1f} requests/s within {options.p95:g} ms, {rate / first if first else 0:.2f} x")
    settings = {"p95": options.p95, "mix": options.mix, "seconds": options.seconds, "tokens": tokens}
    settings["archives"] = {archive.stem: prepare.settings_of(archive) for archive in options.archives}
    result = {**machine.facts("cpu", machine.threads_available()), "settings": settings, "medians": medians}
    print(results.save("turns", {**result, "rows": rows}, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
