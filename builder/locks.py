"""``python -m builder.locks lock|audit``: make the files in ``locks/`` from pyproject.toml, and audit them.

Resolved by uv, all lists together, so that each package has one version everywhere; then a file for each list. Only
names, versions, markers and SHA-256 are kept, no address of an index. torch and what its CUDA builds need stand apart
(torch.txt, cuda.txt), since which build of torch it is to be is the user's choice; the builds of other indices than
PyPI's, which bear the same version, are listed with their digests in torch_builds.txt.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from urllib.parse import unquote

from builder.requirements import LOCKS, ROOT, RequirementsError, locked, pinned

TOOLS = ROOT / "build" / "tools" / "bin"
SETS = ("base", "dev", "serve", "bench", "peers", "docs")
_HEADER = "# Made by make lock from pyproject.toml; changes by hand are lost.\n"
_OLDEST_PYTHON = "3.11"
_CUDA = re.compile(r"nvidia-|cuda-|triton==")
_ENVIRONMENT = re.compile(r" and implementation_name == 'cpython' and \(\(.*sys_platform == 'linux'\)\)(?= \\\n)")
_EVERYWHERE = " ; python_full_version < '3.15' \\"
"""What pyproject.toml's [tool.uv] limits the locks to, which uv repeats as a marker of every package and which
:mod:`builder.requirements` asks once."""


def lock(torch_index: str | None) -> None:
    """Write every lock. ``torch_index``: a package index whose builds of torch are to be accepted too.

    Raises RequirementsError where uv finds no solution or an index gives no digests.
    """
    torch = next(requirement for requirement in pinned("base") if requirement.startswith("torch=="))
    everything = _resolve(pinned("dev", "bench", "peers", "docs"))
    for name in SETS:
        _write(name, [block for block in _blocks(_resolve(pinned(name), everything)) if not _of_torch(block)])
    _write("tools", _blocks(_resolve(pinned("tools"))))
    blocks = _blocks(_resolve([torch], everything))
    _write("cuda", [block for block in blocks if _CUDA.match(block)])
    builds = _torch_builds(torch.partition("==")[2], torch_index)
    more = "".join(f" \\\n    --hash=sha256:{digest}" for digest in builds)
    _write("torch", [block.rstrip("\n") + more + "\n" for block in blocks if block.startswith("torch==")])


def audit() -> int:
    """Look every locked package up in the advisories that PyPI publishes, and print what they say.

    Returns 0 where nothing is known of any, 1 where something is, 2 where some could not be looked up: that is no
    audit, whatever pip-audit itself makes of it.
    """
    files = [argument for name in ("torch", "cuda", *SETS, "tools") for argument in ("-r", str(LOCKS / f"{name}.txt"))]
    command = [str(TOOLS / "pip-audit"), "--disable-pip", "--require-hashes", "--progress-spinner", "off", *files]
    result = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"audit: nothing was looked up: {last}", file=sys.stderr)
        return 2
    known = [(package, advisory) for package in packages for advisory in package.get("vulns", [])]
    for package, advisory in known:
        fixed = ", ".join(advisory["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    skipped = sum("skip_reason" in package for package in packages)
    print(f"{len(packages) - skipped} packages looked up, {len(known)} advisories")
    if skipped:
        print(f"audit: {skipped} packages could not be looked up; is the package index PyPI itself?", file=sys.stderr)
        return 2
    return 1 if known else 0


def _resolve(requirements: list[str], constraints: str | None = None) -> str:
    """uv's answer: the closure of ``requirements`` for every environment of pyproject.toml, with digests."""
    command = [
        str(TOOLS / "uv"), "pip", "compile", "-", "--universal", "--generate-hashes", "--strip-extras", "--quiet",
        "--no-header", "--no-annotate", "--python-version", _OLDEST_PYTHON,
    ]  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as given:
        given.write(constraints or "")
        given.flush()
        command += ["--constraints", given.name]
        result = subprocess.run(
            command, input="\n".join(requirements), capture_output=True, text=True, check=False, cwd=ROOT
        )
    if result.returncode:
        raise RequirementsError(f"uv finds no solution:\n{result.stderr.strip()}")
    return result.stdout


def _blocks(text: str) -> list[str]:
    blocks = [block for blocks in locked(text).values() for block in blocks]
    return [_ENVIRONMENT.sub("", block).replace(_EVERYWHERE, " \\") for block in blocks]


def _of_torch(block: str) -> bool:
    return block.startswith("torch==") or bool(_CUDA.match(block))


def _write(name: str, blocks: list[str]) -> None:
    (LOCKS / f"{name}.txt").write_text(_HEADER + "".join(blocks), encoding="utf-8")


def _torch_builds(version: str, index: str | None) -> list[str]:
    """SHA-256 of the builds of ``version`` that torch_builds.txt lists, those of ``index`` added to it."""
    path = LOCKS / "torch_builds.txt"
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    known = {name: digest for digest, name in lines}
    known |= _published(version, index) if index else {}
    kept = {name: known[name] for name in sorted(known) if name.startswith(f"torch-{version}+")}
    path.write_text("".join(f"{digest}  {name}\n" for name, digest in kept.items()), encoding="utf-8")
    return sorted(kept.values())


def _published(version: str, index: str) -> dict[str, str]:
    """What a package index (PEP 503) says of its wheels for Linux: name -> SHA-256."""
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=60) as answer:
            page = answer.read().decode()
    except (OSError, ValueError) as error:
        raise RequirementsError(f"{index} cannot be read ({error})") from error
    links = re.findall(r'href="[^"]*?(torch-[^"/#]*linux[^"/#]*\.whl)#sha256=([0-9a-f]{64})"', page)
    found = {unquote(name): digest for name, digest in links if unquote(name).startswith(f"torch-{version}+")}
    if not found:
        raise RequirementsError(f"{index} has no build of torch {version} with a digest")
    return found


def main(arguments: list[str]) -> int:
    """``lock`` (with the environment's TORCH_INDEX) or ``audit``."""
    try:
        if arguments[:1] == ["audit"]:
            return audit()
        lock(os.environ.get("TORCH_INDEX") or None)
    except RequirementsError as error:
        print(f"locks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
