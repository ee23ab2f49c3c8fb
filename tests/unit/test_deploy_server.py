from __future__ import annotations

from pathlib import Path

import pytest

from builder.signing import keygen
from deploy.server import Server, ServerError

LOG = """\
2026-01-01T00:00:00,000 [INFO ] W-9000-first_model_1.0-stdout MODEL_LOG - warmed up in 0.4 s
2026-01-01T00:00:01,000 [INFO ] W-9001-second_1.0-stdout MODEL_LOG - RuntimeError: model.pt is missing
2026-01-01T00:00:01,100 [INFO ] W-9001-second_1.0-stdout MODEL_LOG - Backend worker process died.
2026-01-01T00:00:01,200 [INFO ] W-9001-second_1.0-stdout MODEL_LOG - RuntimeError: 500 - Unknown exception
"""


def test_a_worker_that_dies_is_named_with_what_it_died_of(tmp_path: Path) -> None:
    server = Server(tmp_path, tmp_path)
    assert server._reason() == "no error in its logs"
    assert server._dying() is None
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "model_log.log"
    log.write_text(LOG)
    assert server._reason() == "second: RuntimeError: model.pt is missing"
    assert server._dying() is None
    log.write_text(LOG + LOG)
    assert server._dying() == "second"


def test_where_signatures_are_asked_for_nothing_else_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = keygen(tmp_path / "key")
    (tmp_path / "forged.mar").write_bytes(b"no zip")
    monkeypatch.setenv("EFFT_PUBLIC_KEY", str(public))
    with pytest.raises(ServerError, match=r"^forged.mar is not served: forged.mar cannot be read"):
        Server(tmp_path / "run", tmp_path).start(["forged"])
    assert not (tmp_path / "run").exists()
