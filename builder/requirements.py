"""Install what the lock files in ``locks/`` pin, every file checked against its SHA-256.

``python -m builder.requirements NAME ...`` installs the locks of these names (base, dev, serve, bench, peers, tools)
into the environment that runs it, and torch first: PyPI's build, or that of the package index in the environment
variable TORCH_INDEX; what a CUDA build needs besides is installed with such a build only. Needs nothing but pip itself.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"
LOCKS = ROOT / "locks"
NAMES = ("base", "dev", "serve", "bench", "peers", "tools")
_PLATFORMS = [("cpython", "linux", machine) for machine in ("x86_64", "aarch64")]
_PIP = (sys.executable, "-m", "pip")
# The locks are complete: a dependency that is not in them is not wanted. What is built from source (one pure-Python
# package) is built with the setuptools of the lock, not with whatever an isolated build would download unchecked.
_LOCKED = ("--require-hashes", "--no-deps", "--no-build-isolation")


class RequirementsError(Exception):
    """Something the user can mend; the message is one line."""


def pinned(*names: str) -> list[str]:
    """Every ``name==version`` of pyproject.toml's lists: an extra, ``serve`` with the dependencies that it adds to,
    ``base``, which is these and ``build``, or ``dev``, what a checkout needs: base and the extra of that name.
    """
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    serve = project["dependencies"] + extras["serve"]
    base = list(dict.fromkeys(serve + extras["build"]))
    lists = {**extras, "serve": serve, "base": base, "dev": base + extras["dev"]}
    return [requirement for name in names for requirement in lists[name]]


def locked(text: str) -> dict[str, list[str]]:
    """A lock file's blocks: what it says of each package, under its name (several, where versions hang on Python's)."""
    blocks: dict[str, list[str]] = {}
    for block in re.findall(r"(?m)^[a-z0-9][^\n]*\\\n(?:    --hash=[^\n]*\n)+", text):
        blocks.setdefault(re.split(r"[=\[]", block)[0], []).append(block)
    return blocks


def check_fresh(name: str, text: str) -> None:
    """Raises RequirementsError where pyproject.toml pins what the lock ``name`` has not."""
    blocks = {**locked(text), **locked((LOCKS / "torch.txt").read_text(encoding="utf-8"))}
    for requirement in pinned(name):
        package, _, version = requirement.partition("==")
        normal = re.sub(r"[-_.]+", "-", package.partition("[")[0]).lower()
        if not any(
            block.startswith((f"{normal}=={version} ", f"{normal}=={version}\n")) for block in blocks.get(normal, [])
        ):
            raise RequirementsError(f"locks/{name}.txt lacks {requirement} of pyproject.toml; run make lock")


def install(names: list[str], torch_index: str | None) -> None:
    """Install the locks ``names``. Raises RequirementsError where pip cannot, or a file is not the one locked."""
    here = (sys.implementation.name, sys.platform, platform.machine())
    if not (3, 11) <= sys.version_info < (3, 15) or here not in _PLATFORMS:
        raise RequirementsError("the locks are for CPython 3.11 to 3.14 on Linux (x86-64, aarch64); set PYTHON=")
    for name in names:
        check_fresh(name, (LOCKS / f"{name}.txt").read_text(encoding="utf-8"))
    if names != ["tools"]:
        _install_builders()
        _install_torch(torch_index)
    files = [argument for name in names for argument in ("-r", str(LOCKS / f"{name}.txt"))]
    _pip([*_LOCKED, *files], f"the packages of {', '.join(names)}")


def _install_builders() -> None:
    blocks = locked((LOCKS / "base.txt").read_text(encoding="utf-8"))
    text = "".join(blocks["setuptools"] + blocks["wheel"])
    _pip([*_LOCKED, "-r", "/dev/stdin"], "setuptools", text=text)


def _install_torch(index: str | None) -> None:
    """Download first, compare, install then: told the digests, pip prefers PyPI's build over that of another source."""
    what = f"torch from {index}" if index else "torch"
    with tempfile.TemporaryDirectory() as folder:
        _pip(
            ["--no-deps", "--dest", folder, *(["--index-url", index] if index else []), *pinned_torch()],
            what,
            "download",
        )
        (wheel,) = Path(folder).iterdir()
        check_torch_build(wheel, (LOCKS / "torch.txt").read_text(encoding="utf-8"))
        _pip(["--no-deps", str(wheel)], what)
    if any(requirement.startswith(("nvidia-", "cuda-")) for requirement in metadata.requires("torch") or []):
        _pip([*_LOCKED, "-r", str(LOCKS / "cuda.txt")], "torch's CUDA libraries")


def pinned_torch() -> list[str]:
    """The one requirement whose build is chosen by the user."""
    return [requirement for requirement in pinned("base") if requirement.startswith("torch==")]


def check_torch_build(wheel: Path, lock: str) -> None:
    """Raises RequirementsError where a wheel's SHA-256 is none of those in the text of torch.txt."""
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if f"--hash=sha256:{digest}" not in lock:
        raise RequirementsError(
            f"{wheel.name} (SHA-256 {digest[:16]}...) is none of the builds that locks/torch.txt accepts; "
            "make lock TORCH_INDEX=... adds those of a package index"
        )


def _pip(arguments: list[str], what: str, command: str = "install", text: str | None = None) -> None:
    line = [*_PIP, command, "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    result = subprocess.run(line, input=text, stderr=subprocess.PIPE, text=True, check=False)
    if not result.returncode:
        return
    sys.stderr.write(result.stderr)
    mismatch = "DO NOT MATCH THE HASHES" in result.stderr
    why = "a file is not the one of the lock" if mismatch else "pip's own words are above"
    raise RequirementsError(f"{what} cannot be installed ({why})")


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with one line on stderr."""
    unknown = [name for name in arguments if name not in NAMES]
    if unknown or not arguments:
        print(f"requirements: name some of {', '.join(NAMES)}, not {unknown}", file=sys.stderr)
        return 1
    try:
        install(arguments, os.environ.get("TORCH_INDEX") or None)
    except RequirementsError as error:
        print(f"requirements: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
