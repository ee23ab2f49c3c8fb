"""``efft COMMAND``: all that the product does as one command, which a wheel installs.

It imports what a command needs once it is asked for it, so that a machine that serves needs no builder.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

_HELP = """\
Words of the parent project that options, answers and documents use for how an archive computes:
  ori      the checkpoint as transformers runs it: for comparison, and for models that nothing else runs
  ths      transformers' own modules, traced once: starts without transformers
  thsext   the fused encoder of this project, which computes no pad token: what you want (the default)

efft COMMAND --help says more; docs/ in the repository says all."""


@dataclass(frozen=True)
class Command:
    """``run`` takes the arguments behind the command's name; ``needs`` are modules of the extra ``extra``."""

    text: str
    run: Callable[[Sequence[str]], int]
    extra: str = ""
    needs: tuple[str, ...] = ()


def _of_builder(name: str) -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        from builder.cli import main as build
        from builder.interrupts import interruptible

        return interruptible(lambda: build([name, *arguments], prog="efft"))

    return run


def _serve(arguments: Sequence[str]) -> int:
    from deploy.foreground import main as serve

    return serve(arguments)


def _health(arguments: Sequence[str]) -> int:
    from deploy.foreground import health

    return health(arguments)


def _bulk(arguments: Sequence[str]) -> int:
    from handler.bulk.command import main as bulk

    return bulk(list(arguments), prog="efft bulk")


def _doctor(arguments: Sequence[str]) -> int:
    from handler.doctor import main as doctor

    return doctor(list(arguments), prog="efft doctor")


_BUILD = ("transformers", "sentence_transformers", "model_archiver", "safetensors", "tqdm", "yaml", "psutil")
_SERVE = ("ts", "psutil", "requests")
_KEYS = ("cryptography",)
COMMANDS: dict[str, Command] = {
    "archive": Command("build an archive, NAME.mar, from a checkpoint", _of_builder("archive"), "build", _BUILD),
    "serve": Command("serve archives over HTTP until it is stopped", _serve, "serve", _SERVE),
    "health": Command("ask a served machine whether all its models answer", _health, "serve", ("requests",)),
    "bulk": Command("score a file with an archive, without a server", _bulk, "bulk", ("pyarrow",)),
    "tune": Command("find an archive's best workers and threads here", _of_builder("tune"), "serve", ("yaml",)),
    "inspect": Command("print what an archive holds", _of_builder("inspect")),
    "doctor": Command("a worker's checks and one prediction, without a server", _doctor),
    "compile": Command("compile the kernels and print the library's path", _of_builder("compile"), "build", _BUILD),
    "keygen": Command("make a key that signs archives", _of_builder("keygen"), "serve", _KEYS),
    "sign": Command("sign an archive", _of_builder("sign"), "serve", _KEYS),
    "verify": Command("check an archive's files, and its signature", _of_builder("verify"), "serve", _KEYS),
}


def usage() -> str:
    """What ``efft --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = []
    for name, command in COMMANDS.items():
        extra = f" [{command.extra}]" if command.extra else ""
        lines.append(f"  {name:<{width}}  {command.text}{extra}")
    listed = "\n".join(lines)
    return (
        "usage: efft COMMAND ...\n\nServe a fine-tuned BERT: an archive is built of a checkpoint once, and served.\n\n"
        f"{listed}\n\nIn brackets: the extra that a command needs, as in pip install 'efft[serve]'.\n\n{_HELP}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit status."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"efft {_version()}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(COMMANDS)}"
        return _refuse(f"there is no command {name!r}; {hint}", 2)
    command = COMMANDS[name]
    # Of the matrix products of a checkpoint, which has to be read.
    reads = name == "tune" and any(argument.partition("=")[0] == "--model" for argument in rest)
    needs, extra = (_BUILD, "build") if reads else (command.needs, command.extra)
    if missing := [module for module in needs if find_spec(module) is None]:
        return _refuse(f"{name} needs {missing[0]}, which is not installed; pip install 'efft[{extra}]'", 1)
    return command.run(rest)


def _version() -> str:
    try:
        return metadata.version("efft")
    except metadata.PackageNotFoundError:
        return "of a checkout"


def _refuse(message: str, status: int) -> int:
    print(f"efft: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
