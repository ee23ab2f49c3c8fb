"""Requests generated from docs/openapi.yaml, valid and invalid: no 5xx, and only documented answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from builder.compile import ROOT
from deploy.server import Server

COMMAND = shutil.which("schemathesis") or str(Path(sys.executable).parent / "schemathesis")
CHECKS = "not_a_server_error,response_schema_conformance,status_code_conformance"


@pytest.mark.skipif(not Path(COMMAND).exists(), reason="schemathesis is not installed")
def test_generated_requests(server: Server, tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())
    for path in document["paths"].values():
        path["parameters"][0]["schema"] = {"enum": ["ticket_routing", "document_qa"]}
    (tmp_path / "openapi.yaml").write_text(yaml.safe_dump(document))
    workers = server.worker_pids()
    token = server.headers()["Authorization"]
    result = subprocess.run(
        [COMMAND, "run", str(tmp_path / "openapi.yaml"), "--url", server.url, "-H", f"Authorization: {token}",
         "--checks", CHECKS, "--phases", "fuzzing", "--mode", "all", "--max-examples", "300", "--seed", "7",
         "--no-color"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    assert server.worker_pids() == workers
