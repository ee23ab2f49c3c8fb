from __future__ import annotations

import socket
from pathlib import Path

import pytest

from builder.signing import keygen
from deploy import foreground, ports, server
from deploy.server import PortTakenError, Server, ServerError

LOG = """\
2026-01-01T00:00:00,000 [INFO ] W-9000-first_model_1.0-stdout MODEL_LOG - warmed up in 0.4 s
2026-01-01T00:00:01,000 [INFO ] W-9001-second_1.0-stdout MODEL_LOG - RuntimeError: model.pt is missing
2026-01-01T00:00:01,100 [INFO ] W-9001-second_1.0-stdout MODEL_LOG - Backend worker process died.
2026-01-01T00:00:01,200 [INFO ] W-9001-second_1.0-stdout MODEL_LOG - RuntimeError: 500 - Unknown exception
"""


def free() -> tuple[int, int, int]:
    first = ports.suggestion(20000)
    assert first is not None
    return first, first + 1, first + 2


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
        Server(tmp_path / "run", tmp_path, ports=free(), grpc_ports=free()[:2]).start(["forged"])
    assert not (tmp_path / "run").exists()


def test_what_is_not_in_the_store_is_told_with_what_is(tmp_path: Path) -> None:
    said: list[str] = []
    local = Server(tmp_path / "run", tmp_path)
    with pytest.raises(ServerError, match=r"^no x\.mar, no y\.mar in .*/; it has no archive; run make archive$"):
        local.start(["x", "y"], checked=lambda: said.append("starting"))
    for name in ("b", "a"):
        (tmp_path / f"{name}.mar").touch()
    with pytest.raises(ServerError, match=r"^no x\.mar in .*/; there are: a, b$"):
        local.start(["a", "x"], checked=lambda: said.append("starting"))
    assert not said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_that_is_taken_is_told_before_java_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(server, "_CLOSING", 0.0)
    (tmp_path / "a.mar").touch()
    with socket.create_server((host, 0)) as other:
        port = other.getsockname()[1]
        for own, grpc in (((port, *free()[:2]), free()[:2]), (free(), (free()[0], port))):
            with pytest.raises(PortTakenError, match=rf"^port {port} is taken by another process$") as caught:
                Server(tmp_path / "run", tmp_path, ports=own, grpc_ports=grpc).start(["a"])
            assert caught.value.port == port
    assert ports.taken([(host or "0.0.0.0", port)]) is None
    assert not (tmp_path / "run").exists()


def test_a_configuration_says_where_it_listens() -> None:
    text = (
        "# inference_address=http://1.1.1.1:1\ninference_address = http://0.0.0.0:90\nmanagement_address=unix:/tmp/x\n"
    )
    found = ports.addresses(text + "metrics_address=http://[::1]:92\ngrpc_inference_port=x\ngrpc_management_port=94\n")
    assert found == {"inference": ("0.0.0.0", 90), "metrics": ("::1", 92), "grpc_management": ("127.0.0.1", 94)}


def test_a_failed_start_leaves_no_token_and_names_its_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ROOT", tmp_path)
    (tmp_path / "a.mar").touch()
    folder = tmp_path / "build" / "server"
    failing = Server(folder, tmp_path, ports=free(), grpc_ports=free()[:2])

    def write(_arguments: object) -> None:
        (folder / "key_file.json").write_text("{}")

    monkeypatch.setattr(failing, "_torchserve", write)
    monkeypatch.setattr(failing, "_ready", lambda _name: False)
    with pytest.raises(ServerError, match=r"^TorchServe did not get ready: .* \(logs: build/server/logs\)$"):
        failing.start(["a"], timeout=0.1)
    assert not (folder / "key_file.json").exists()


def test_in_the_foreground_a_taken_port_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "_CLOSING", 0.0)
    monkeypatch.setattr(foreground, "raise_interrupts", lambda: None)
    (tmp_path / "a.mar").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        given = [str(tmp_path / "a.mar"), "--folder", str(tmp_path / "run"), "--port", str(port)]
        assert foreground.main(given) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"efft: port {port} is taken by another process; stop it, or see --port")
