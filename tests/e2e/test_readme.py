"""The README's commands, executed word for word in the order they stand in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from builder.compile import ROOT
from deploy.server import PORTS
from tests.checkpoints import make_checkpoint

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHIVES = (ROOT / "docs" / "archives.md").read_text(encoding="utf-8")
LOOKS = "python -m builder inspect"
"""The block of docs/archives.md that looks at the samples; the other one stands in the README, too."""


def _blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(sh|json|python)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


BLOCKS = _blocks(README) + [block for block in _blocks(ARCHIVES) if LOOKS in block[1]]
RUNS_THIS_TEST = "make demo"
"""The block of the two commands is left out: `make test` is what runs this file, and the blocks after it do what
`make demo` does, step by step."""


class Reader:
    """A shell that keeps its variables from one block to the next, as a reader's does."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.blocks = 0
        self.state.write_text("")

    def __call__(self, script: str) -> str:
        keep = f"export -p > {self.state}; declare -p TOKEN >> {self.state} 2>/dev/null || true"
        command = f"set -e; . {self.state}; {script}\n{keep}"
        environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "PYTHONPATH")}
        # Into a file, not a pipe: the server inherits it, and a pipe would not end before the server does.
        self.blocks += 1
        output = self.state.with_name(f"block{self.blocks}.out")
        with output.open("w") as stream:
            status = subprocess.run(
                ["bash", "-c", command], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=600, check=False,
                env=environment, start_new_session=True,
            ).returncode  # fmt: skip
        text = output.read_text(errors="replace")
        assert status == 0, f"{script}\n{text[-3000:]}"
        return text


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    shell = Reader(folder / "state.sh")
    shell(f"export TMPDIR={folder} TEMP={folder} LOG_LOCATION={folder} METRICS_LOCATION={folder}")
    yield shell
    shell(". .venv/bin/activate; make stop; torchserve --stop; rm -f key_file.json")


def _wait_until_ready() -> None:
    keys = json.loads((ROOT / "key_file.json").read_text())
    headers = {"Authorization": f"Bearer {keys['management']['key']}"}
    for name in ("ticket_routing", "document_qa"):
        for _ in range(300):
            try:
                model = requests.get(f"http://127.0.0.1:{PORTS[1]}/models/{name}", headers=headers, timeout=5).json()
                if [worker["status"] for worker in model[0]["workers"]] == ["READY"]:
                    break
            except (requests.RequestException, KeyError, IndexError):
                pass
            time.sleep(0.5)
        else:
            pytest.fail(f"{name} did not get ready")


def _same(answer: dict[str, object], printed: dict[str, object]) -> None:
    assert answer.keys() == printed.keys()
    for key, value in printed.items():
        assert answer[key] == (pytest.approx(value, abs=2e-3) if isinstance(value, float) else value), key


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="the README's commands use .venv, which make setup makes")
def test_the_commands_and_answers(reader: Reader, tmp_path: Path) -> None:
    output = ""
    for kind, text in BLOCKS:
        if kind == "sh" and RUNS_THIS_TEST not in text:
            if "path/to/checkpoint" in text:
                folder = make_checkpoint(tmp_path / "checkpoint", "distilbert")
                text = text.replace("path/to/checkpoint", str(folder)) + "make stop; rm model_store/checkpoint.mar\n"
            output = reader(text)
            if "torchserve --start" in text:
                time.sleep(2)
                _wait_until_ready()
        elif kind == "json":
            _same(json.loads(output.splitlines()[-1]), json.loads(text))
        elif kind == "python":
            output = reader(f"python - <<'END'\n{text}END")
            assert "'delivery'" in output
            assert "'account'" in output


def test_every_target_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_every_file_the_readme_links_exists() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
