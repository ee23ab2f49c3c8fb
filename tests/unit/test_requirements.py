"""The locks: complete, fresh, of files and no addresses; and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from builder import requirements
from builder.locks import SETS
from builder.requirements import LOCKS, PROJECT, RequirementsError, check_fresh, check_torch_build, locked, pinned

_BLOCK = re.compile(r"[a-z0-9-]+==[^ ;]+( ; python_full_version [^\\]*)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+")
LOCKED = ["torch", "cuda", *SETS, "tools"]


def _names(*lists: str) -> set[str]:
    return {requirement.split("==")[0] for requirement in pinned(*lists)}


def test_setup_installs_the_dependencies_and_dev_but_no_peer() -> None:
    assert {"torch", "pydantic", "pytest"} <= _names("dev")
    assert not {"openvino", "locust"} & _names("dev")


def test_an_extra_by_name() -> None:
    assert {"openvino", "onnxruntime", "ctranslate2"} <= _names("peers")
    assert "torch" not in _names("peers")


def test_a_server_needs_no_builder() -> None:
    names = set(locked((LOCKS / "serve.txt").read_text()))
    assert {"torchserve", "tokenizers", "pydantic", "numpy"} <= names
    assert not {"transformers", "sentence-transformers", "peft", "pytest"} & names


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_holds_names_versions_and_digests_alone(name: str) -> None:
    header, _, rest = (LOCKS / f"{name}.txt").read_text().partition("\n")
    assert header.startswith("# Made by make lock")
    assert re.sub(_BLOCK, "", rest) == ""


@pytest.mark.parametrize("name", [*SETS, "tools"])
def test_a_lock_is_as_new_as_the_project(name: str) -> None:
    check_fresh(name, (LOCKS / f"{name}.txt").read_text())


def test_a_changed_pin_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "pyproject.toml"
    changed.write_text(PROJECT.read_text().replace('"peft==', '"peft==9'))
    monkeypatch.setattr(requirements, "PROJECT", changed)
    with pytest.raises(RequirementsError, match=r"locks/dev.txt lacks peft==9.*; run make lock"):
        check_fresh("dev", (LOCKS / "dev.txt").read_text())


@pytest.mark.parametrize("name", ["serve", "dev"])
def test_a_lock_is_closed(name: str) -> None:
    """It is installed without looking further, so whatever its packages say they need must be in it."""
    blocks = {**locked((LOCKS / f"{name}.txt").read_text()), **locked((LOCKS / "torch.txt").read_text())}
    for package in blocks:
        for text in metadata.requires(package) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                wanted = re.sub(r"[-_.]+", "-", needed.name).lower()
                assert wanted in blocks or wanted.startswith(("nvidia-", "cuda-", "triton")), (package, text)


def test_one_version_everywhere() -> None:
    found: dict[str, list[str]] = {}
    for name in ("torch", "cuda", *SETS):
        for package, blocks in locked((LOCKS / f"{name}.txt").read_text()).items():
            found.setdefault(package, []).extend(blocks)
    several = {package for package, blocks in found.items() if len({block.split(" ")[0] for block in blocks}) > 1}
    assert all(" ; " in block.splitlines()[0] for package in several for block in found[package])


def test_a_build_of_torch_that_the_lock_does_not_know_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"a wheel")
    digest = hashlib.sha256(b"a wheel").hexdigest()
    check_torch_build(wheel, f"torch==2.13.0 \\\n    --hash=sha256:{digest}\n")
    with pytest.raises(
        RequirementsError, match=r"is none of the builds that locks/torch.txt accepts; make lock TORCH_"
    ):
        check_torch_build(wheel, (LOCKS / "torch.txt").read_text())


def test_the_cpu_builds_are_in_the_lock() -> None:
    version = next(r for r in pinned("base") if r.startswith("torch==")).partition("==")[2]
    lock = (LOCKS / "torch.txt").read_text()
    builds = [line.split() for line in (LOCKS / "torch_builds.txt").read_text().splitlines()]
    assert {name.split("-")[2] for _, name in builds if name.startswith(f"torch-{version}+cpu-")} >= {
        "cp311",
        "cp312",
        "cp313",
    }
    assert all(f"--hash=sha256:{digest}" in lock for digest, _ in builds)


def test_a_lock_unknown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert requirements.main(["bnech"]) == 1
    assert "requirements: name some of base, dev" in capsys.readouterr().err


def test_the_sbom_is_of_these_locks() -> None:
    sbom = json.loads((LOCKS / "sbom.cdx.json").read_text())
    listed = {(component["name"], component["version"]) for component in sbom["components"]}
    pins = {
        tuple(block.split(" ")[0].split("=="))
        for name in LOCKED
        for blocks in locked((LOCKS / f"{name}.txt").read_text()).values()
        for block in blocks
    }
    assert listed == pins
    assert sbom["bomFormat"] == "CycloneDX"
    page = (PROJECT.parent / "docs" / "licences.md").read_text()
    assert all(f"| {name} | {version} |" in page for name, version in pins)
