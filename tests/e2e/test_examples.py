"""The example runs as it stands, from the first cell to the last, and finds what a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from builder.compile import ROOT
from tests.e2e.conftest import free_ports


def test_the_first_day(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "examples/first_day.py", "--store", str(store), "--folder", str(tmp_path / "server")]
    first = next(port for port in free_ports(8) if port < 65_000)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--first-port", str(first)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout
    for label, ticket in (("delivery", "parcel"), ("billing", "charged twice"), ("account", "password")):
        assert re.search(rf"^{label} .*{ticket}", said, re.MULTILINE)
    assert "Who repaired the clock? Hanna Berg" in said
    found = dict(re.findall(r"^(\w[^\n]*)\n  0\.\d\d  ([^\n]*)", said, re.MULTILINE))
    nearest = {
        "my package never came": "Parcels that do not arrive",
        "I forgot how to log in": "To choose a new password",
        "when do I get a refund": "Money for returned goods",
        "how do I clean a sweater": "Wool pullovers are washed",
    }
    assert found.keys() == nearest.keys()
    assert all(found[query].startswith(text) for query, text in nearest.items())
