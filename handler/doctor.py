"""``python -m handler.doctor NAME.mar``: what a worker checks at its start, and one prediction, without a server."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TextIO

import torch

from handler.archive import ArchiveError
from handler.config import ConfigError
from handler.faults import guarded
from handler.predictor import Predictor
from handler.threads import read_server_settings


def main(arguments: list[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Check an archive (or a folder with an extracted one); exit status 0 where it can be served."""
    parser = argparse.ArgumentParser(prog="python -m handler.doctor", description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--gpu", type=int, help="the GPU's index (default: the CPU)")
    options = parser.parse_args(arguments)
    return guarded("doctor", lambda: _main(options, out))


def _main(options: argparse.Namespace, out: TextIO) -> int:
    try:
        with tempfile.TemporaryDirectory() as temporary:
            examine(extracted(options.archive, Path(temporary)), options.gpu, out)
    except (ArchiveError, ConfigError) as error:
        out.write(f"not servable: {error}\n")
        return 1
    return 0


def extracted(archive: Path, folder: Path) -> Path:
    """The archive's files in ``folder``, or the archive itself where it is a folder. Raises ArchiveError."""
    if archive.is_dir():
        return archive
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{archive.name} cannot be read ({error})") from error
    return folder


def examine(folder: Path, gpu: int | None, out: TextIO) -> None:
    """Load, warm up and ask one question, with a line for each thing found. Raises ArchiveError or ConfigError."""
    predictor = Predictor.load(folder, gpu, read_server_settings(folder))
    facts = predictor.facts
    out.write(f"archive   {facts.name}: {facts.task}, {facts.family}, {facts.mode}, {facts.data_type}\n")
    out.write(f"torch     {torch.__version__} (built with {facts.torch.built}, oldest {facts.torch.oldest})\n")
    for name, library in sorted(facts.libraries.items()):
        out.write(f"library   {name}: {', '.join(library.targets) or library.device}\n")
    out.write(f"device    {predictor.model.device}\n")
    out.write(f"threads   {predictor.placement}\n")
    health = predictor.canary.check()
    if not health["healthy"]:
        raise ArchiveError(f"a known request failed: {health['reason']}")
    out.write(f"canary    answered in {health['milliseconds']:.1f} ms\n")
    answer = predictor(predictor.canary.request)
    out.write(f"request   {json.dumps(predictor.canary.request, ensure_ascii=False)}\n")
    out.write(f"answer    {json.dumps(answer, ensure_ascii=False)[:400]}\n")
    out.write("servable\n")


if __name__ == "__main__":
    sys.exit(main())
