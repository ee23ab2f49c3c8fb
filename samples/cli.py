"""The command line: ``python -m samples build|train|evaluate|quantise [NAME...]``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from transformers.utils import logging

from samples.base import SamplesError, load_tokenizer
from samples.build import build, merged
from samples.document_qa import DocumentQA
from samples.recipe import Sample
from samples.ticket_routing import TicketRouting
from samples.train import train

SAMPLES: dict[str, Sample] = {s.name: s for s in (TicketRouting(), DocumentQA())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 with one line on stderr when the user has to act."""
    parser = argparse.ArgumentParser(
        prog="python -m samples", description="Build, train and measure the sample models."
    )
    parser.add_argument("command", choices=tuple(_COMMANDS))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SAMPLES)} (default: all)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in SAMPLES]
    if unknown:
        parser.error(f"no sample named {unknown[0]!r}; there are {', '.join(SAMPLES)}")
    # Merging takes a second: transformers' progress bars, and its notices to peft's authors, would bury the answer.
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        for name in options.names or SAMPLES:
            _COMMANDS[options.command](SAMPLES[name])
    except SamplesError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _build(sample: Sample) -> None:
    print(build(sample))


def _train(sample: Sample) -> None:
    print(train(sample))


def _evaluate(sample: Sample) -> None:
    figures = sample.evaluate(merged(sample), load_tokenizer())
    print(f"{sample.name}: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()))


def _quantise(sample: Sample) -> None:
    from samples import quantise

    folder, figures = quantise.quantise(sample)
    print(quantise.table(figures))
    print(folder)


_COMMANDS = {"build": _build, "train": _train, "evaluate": _evaluate, "quantise": _quantise}
