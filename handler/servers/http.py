"""``python -m handler.servers.http NAME.mar ...``: the application under uvicorn, without TorchServe, Java or Ray."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from handler.archive import ArchiveError
from handler.config import ConfigError
from handler.faults import guarded
from handler.servers.app import application
from handler.servers.figures import Figures
from handler.servers.keys import read_keys
from handler.servers.local import LocalModels, named, parser_of
from handler.servers.model import Card
from handler.servers.running import Running
from handler.threads import available_cores, read_server_settings

OPTIONS = "EFFT_HTTP"
"""Environment variable by which the processes of a server are told its options."""
KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than a proxy before it keeps its own (nginx: 60)."""
SILENCE = 120
"""Seconds without a sign of life after which a process is replaced: one that starts on a busy machine gives none for a
while, and uvicorn's own five seconds would end it again and again."""
DRAIN = 60
"""Seconds that a stopping server gives its running requests."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until it is told to end; the exit status."""
    options = _parser().parse_args(arguments)
    return guarded("http", lambda: _main(options))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("http", __doc__, 8080)
    parser.add_argument("--workers", type=int, help="processes, each with all models (default: as tuned, else 1)")
    parser.add_argument("--threads", type=int, help="of one process (default: as tuned, else the cores divided)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU where the archives run on it)")
    parser.add_argument("--queue", type=int, default=1000, help="requests of a model that may wait in a process")
    parser.add_argument("--key-file", type=Path, help="keys, one a line; a client must bring one as bearer token")
    parser.add_argument("--drain", type=int, default=DRAIN, help="seconds that running requests get at the end")
    return parser


def _main(options: argparse.Namespace) -> int:
    try:
        archives = named(options.archives)
        cards = {name: Card.read(name, path) for name, path in archives.items()}
        read_keys(options.key_file)
        workers, settings = shares(next(iter(archives.values())), options.workers, options.threads)
        os.environ[OPTIONS] = json.dumps(
            {
                "archives": {name: str(path) for name, path in archives.items()},
                "device": options.device,
                "settings": settings,
                "queue": options.queue,
                "key_file": str(options.key_file) if options.key_file else None,
            }
        )
        common: dict[str, Any] = {
            "host": options.host, "port": options.port, "log_level": "warning", "access_log": False,
            "server_header": False, "timeout_keep_alive": KEEP_ALIVE, "timeout_graceful_shutdown": options.drain,
            "timeout_worker_healthcheck": SILENCE,
        }  # fmt: skip
        names = ", ".join(f"{card.name} ({card.task})" for card in cards.values())
        where = f"http://{options.host}:{options.port}"
        if workers > 1:
            say(f"{workers} processes serve {names} at {where}")
            uvicorn.run("handler.servers.http:worker", factory=True, workers=workers, **common)
            return 0
        server = uvicorn.Server(uvicorn.Config(worker(), **common))
        say(f"serving {names} at {where}")
        # When all is answered uvicorn raises the signal that ended it once more: an end in order is status 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        server.run()
        return 0 if server.started else 1
    except (ArchiveError, ConfigError) as error:
        sys.stderr.write(f"http: {error}\n")
        return 1


def say(text: str) -> None:
    """A line for the user."""
    sys.stdout.write(f"http: {text}\n")
    sys.stdout.flush()


def worker() -> FastAPI:
    """The application of one process, by the options in its environment. Ends the process where a model cannot be
    loaded, with one line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    options = json.loads(os.environ[OPTIONS])
    figures = Figures()
    keys = read_keys(Path(options["key_file"]) if options["key_file"] else None)
    archives = {name: Path(path) for name, path in options["archives"].items()}
    models = LocalModels.open(
        archives, figures, device=options["device"], settings=options["settings"], capacity=options["queue"]
    )
    return application(models, keys=keys, running=Running(), figures=figures, at_end=models.close)


def shares(archive: Path, workers: int | None, threads: int | None) -> tuple[int, dict[str, Any]]:
    """How many processes, and each one's settings as Engine.load takes them: as told, else as ``builder tune`` wrote
    into the archive, else one for the machine. Raises ArchiveError or ConfigError."""
    try:
        tuned = read_server_settings(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{archive.name} cannot be read ({error})") from error
    block: Any = tuned.get("handler")
    block = block if isinstance(block, dict) else {}
    if workers is None:
        workers = int(tuned.get("maxWorkers") or 1)
    if workers < 1 or (threads is not None and threads < 1):
        raise ConfigError("workers and threads must be at least 1")
    threads = threads or int(block.get("threads") or 0) or max(1, available_cores() // workers)
    return workers, {"maxWorkers": workers, "handler": {"threads": threads, "pin": bool(block.get("pin"))}}


if __name__ == "__main__":
    sys.exit(main())
