"""``python -m builder.make TARGET``: the Makefile's targets whose variables come from a user, as environment.

No shell and no make reads them, so that a name may hold any character: it is taken or refused, never run.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from builder.cli import main as build
from builder.compile import ROOT
from builder.interrupts import interruptible
from handler.config import NAME_PATTERN

SAMPLES = ("ticket_routing", "document_qa")
STORE = Path("model_store")
"""Where make runs, which is the checkout, as it is shown."""
_OPTIONS = {
    "TASK": "--task", "ENCODER": "--encoder", "FORMAT": "--format", "COMPUTE": "--compute", "SCHEME": "--scheme",
    "MODE": "--mode", "KIND": "--kind", "DTYPE": "--data-type", "NAME": "--name", "DEVICE": "--device",
    "CALIBRATE": "--calibrate", "ADAPTER": "--adapter",
}  # fmt: skip
_SAMPLE_OPTIONS = ("ENCODER", "FORMAT", "COMPUTE", "SCHEME", "KIND", "DTYPE", "DEVICE")


class MakeError(Exception):
    """A variable that cannot be used; the message is one line."""


def archive(given: Mapping[str, str]) -> int:
    """Build MODEL's archive, or both samples'."""
    if given.get("MODEL"):
        return _build(["archive", f"--model={given['MODEL']}", *options(given, tuple(_OPTIONS)), f"--output={STORE}"])
    status = _run("samples", "build")
    for name in SAMPLES:
        config = str(ROOT / "setup_configs" / f"{name}.json")
        status = status or _build(["archive", config, *options(given, _SAMPLE_OPTIONS), f"--output={STORE}"])
    return status


def options(given: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """The builder's options for the variables that are set; one word each, whatever it begins with. Of ADAPTER, one for
    each of several words that are all NAME=folder."""
    return [f"{_OPTIONS[name]}={value}" for name in names if given.get(name) for value in _values(name, given[name])]


def _values(name: str, given: str) -> list[str]:
    several = given.split() if name == "ADAPTER" else []
    return several if len(several) > 1 and all("=" in word for word in several) else [given]


def served_names(given: Mapping[str, str]) -> list[str]:
    """NAMES, NAME or the samples. Raises MakeError for what is no archive's name."""
    names = (given.get("NAMES") or given.get("NAME") or " ".join(SAMPLES)).split()
    for name in names:
        if not NAME_PATTERN.fullmatch(name):
            raise MakeError(f"{name!r} is no archive's name; archives lie in model_store as NAME.mar")
    return names


def serve(given: Mapping[str, str]) -> int:
    """Start the server; samples that are not built yet are built, unless it could not be started."""
    names = served_names(given)
    missing = [name for name in names if name in SAMPLES and not (STORE / f"{name}.mar").is_file()]
    status = (_run("deploy", "check") or archive({})) if missing else 0
    return status or _run("deploy", "serve", *names)


def demo(given: Mapping[str, str]) -> int:
    """Build the samples, serve them, print their answers, stop."""
    samples = {name: given.get(name, "") for name in _SAMPLE_OPTIONS}
    return _run("deploy", "check") or archive(samples) or _run("deploy", "demo", *SAMPLES)


def predict(given: Mapping[str, str]) -> int:
    """Ask NAMES, or whatever is served."""
    named = given.get("NAMES") or given.get("NAME")
    return _run("deploy", "predict", *(served_names(given) if named else ()))


def bench(given: Mapping[str, str], arguments: Sequence[str]) -> int:
    """The encoder benchmark with the Makefile's arguments, and those in BENCH, as a shell would split them."""
    try:
        more = shlex.split(given.get("BENCH", ""))
    except ValueError as error:
        raise MakeError(f"BENCH cannot be split into arguments ({error})") from error
    return _run("benchmarks", "encoder", *arguments, *more)


def _build(arguments: Sequence[str]) -> int:
    return build(arguments, spelled={option: name for name, option in _OPTIONS.items()})


def _run(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=False).returncode


def main(arguments: Sequence[str], given: Mapping[str, str]) -> int:
    """Run one target with the variables ``given``; its exit status."""
    target, *rest = arguments
    try:
        if target == "bench":
            return bench(given, rest)
        if target == "compile":
            return _build(["compile", *options(given, ("DEVICE",))])
        return {"archive": archive, "serve": serve, "demo": demo, "predict": predict}[target](given)
    except MakeError as error:
        print(f"make: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(interruptible(lambda: main(sys.argv[1:], os.environ)))
