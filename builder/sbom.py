"""``python -m builder.sbom``: what the locks hold, as CycloneDX (locks/sbom.cdx.json) and as a page of licences.

Licences are those that each package states in its metadata, which pip reads without downloading the package. Runs in
the environment of the tools (``make sbom``).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.requirements import LOCKS, ROOT, RequirementsError, locked

SBOM = LOCKS / "sbom.cdx.json"
PAGE = ROOT / "docs" / "licences.md"
_SETS = {
    "serve": "a server needs, whatever it serves",
    "cuda": "a CUDA build of torch needs besides",
    "base": "building archives needs besides",
    "dev": "tests and samples need besides",
    "bench": "`make bench` needs besides",
    "peers": "`make bench-peers` needs besides",
    "docs": "`make docs` needs besides",
    "tools": "`make lock`, `make audit` and `make sbom` need, in an environment of their own",
}
_NOT_STATED = "not stated in its metadata"
_LONGEST = 60
"""Characters of a licence's name; beyond, it is its text, and the classifiers say which it is."""


@dataclass
class Package:
    """A package of the locks: where it is first needed, and the licence it states."""

    name: str
    version: str
    licence: str
    sets: list[str] = field(default_factory=list)


def packages() -> list[Package]:
    """Every package of the locks, those for other versions of Python included, with the licence of the one that pip
    chooses for this interpreter.

    Raises RequirementsError where pip cannot read them, or a digest is not the lock's.
    """
    found: dict[tuple[str, str], Package] = {}
    for name in _SETS:
        files = [name, "torch"] if name == "serve" else [name]
        licences = {_normal(facts["name"]): licence(facts) for facts in _report(files)}
        for file in files:
            for package, blocks in locked((LOCKS / f"{file}.txt").read_text(encoding="utf-8")).items():
                for block in blocks:
                    version = re.split(r"==|[ ;\\]", block)[1]
                    stated = licences.get(package, _NOT_STATED)
                    found.setdefault((package, version), Package(package, version, stated)).sets.append(file)
    return [found[key] for key in sorted(found)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _report(names: list[str]) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [
            sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--require-hashes",
            "--no-build-isolation", "--quiet", "--report", report.name,
        ]  # fmt: skip
        command += [argument for name in names for argument in ("-r", str(LOCKS / f"{name}.txt"))]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RequirementsError(f"pip cannot read the packages of {', '.join(names)}:\n{result.stderr.strip()}")
        return [item["metadata"] for item in json.loads(Path(report.name).read_text())["install"]]


def licence(metadata: dict[str, Any]) -> str:
    """An SPDX expression where the metadata has one (PEP 639), else the classifiers' words, else the old free text."""
    if metadata.get("license_expression"):
        return str(metadata["license_expression"])
    kinds = [c.rpartition(" :: ")[2] for c in metadata.get("classifier", []) if c.startswith("License ::")]
    text = " ".join((metadata.get("license") or "").split())
    named = text if 0 < len(text) <= _LONGEST else ""
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    return ", ".join(kinds) or named or _NOT_STATED


def sbom(found: list[Package]) -> str:
    """CycloneDX 1.6 in JSON: no date and a serial number made of its content, so that it changes when that does."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    make_licence = LicenseFactory().make_from_string
    root = Component(name="efft", type=ComponentType.APPLICATION, licenses=[make_licence("MIT")], bom_ref="efft")
    bom = Bom(
        components=[
            Component(
                name=package.name,
                version=package.version,
                type=ComponentType.LIBRARY,
                bom_ref=f"{package.name}=={package.version}",
                purl=PackageURL("pypi", None, package.name, package.version),
                licenses=[make_licence(package.licence)],
                scope=ComponentScope.REQUIRED if package.sets[0] in ("serve", "torch") else ComponentScope.OPTIONAL,
                properties=[Property(name="efft:lock", value=f"locks/{name}.txt") for name in package.sets],
            )
            for package in found
        ],
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, repr(found)),
    )
    bom.metadata.component = root
    bom.register_dependency(root, bom.components)
    written = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    written["metadata"].pop("timestamp", None)
    return json.dumps(written, indent=1, sort_keys=True) + "\n"


def page(found: list[Package]) -> str:
    """docs/licences.md."""
    lines = [
        "# Licences",
        "",
        "Made by `make sbom` from the packages' own metadata; changes by hand are lost. EFFT itself is under the MIT",
        "licence ([LICENSE](../LICENSE)). An archive holds EFFT's handler and library, and the checkpoint's weights",
        "and tokenizer, which stay under the checkpoint's licence; no package below is a part of it. They are what an",
        "environment is installed with ([security.md](security.md#the-locks)); an image that has them ships them.",
    ]
    for name, purpose in _SETS.items():
        first = ("serve", "torch") if name == "serve" else (name,)
        own = [package for package in found if package.sets[0] in first]
        lines += ["", f"## What {purpose}", "", "| package | version | licence |", "| --- | --- | --- |"]
        lines += [f"| {package.name} | {package.version} | {package.licence} |" for package in own]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write both files."""
    try:
        found = packages()
    except RequirementsError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    SBOM.write_text(sbom(found), encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"{SBOM.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}: {len(found)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
