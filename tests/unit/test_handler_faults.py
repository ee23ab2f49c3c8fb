"""What nobody foresaw, in one line and a file; what the system refuses, in one line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from builder import cli
from handler.faults import guarded


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "tool: interrupted"),
        (OSError(28, "No space left on device", "x.mar"), 1, "tool: x.mar: No space left on device"),
        (PermissionError(13, "Permission denied"), 1, "tool: Permission denied"),
        (MemoryError(), 1, "tool: not enough memory"),
    ],
)
def test_what_the_user_can_mend(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded("tool", lambda: _raise(error)) == status
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("error", [ZeroDivisionError("division\nby zero"), RecursionError(), AssertionError()])
def test_a_fault_of_the_programs_own_keeps_its_trace(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert guarded("tool", lambda: _raise(error)) == 70
    (said,) = capsys.readouterr().err.splitlines()
    (trace,) = tmp_path.glob("efft-*.trace.txt")
    assert str(trace) in said
    assert "report" in said
    assert "Traceback" not in said
    assert type(error).__name__ in trace.read_text()
    assert "Traceback" in trace.read_text()


def test_no_place_for_the_trace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/absent")
    assert guarded("tool", lambda: _raise(ValueError("x"))) == 70
    assert "could not be kept" in capsys.readouterr().err


def test_the_builder_is_guarded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "_inspect", lambda options: _raise(ZeroDivisionError("by zero")))
    assert cli.main(["inspect", "x.mar"]) == 70
    assert capsys.readouterr().err.startswith("builder: unexpected ZeroDivisionError: by zero; this is a fault")
