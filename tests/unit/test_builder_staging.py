"""Nothing staged stays behind: not after a signal, not after a power cut; and nobody else's stage goes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from builder.compile import ROOT
from builder.staging import PREFIX, settle, staging

_COMMAND = """
import subprocess, sys
from pathlib import Path
from builder.interrupts import interruptible
from builder.staging import staging

def build():
    with staging(Path(sys.argv[1]), "name") as folder:
        (folder / "half").write_text("done")
        subprocess.run(["sh", "-c", "sleep 600 & echo started; wait"])

sys.exit(interruptible(build))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_neither_stage_nor_child(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", _COMMAND, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    assert [path.name.startswith(PREFIX) for path in tmp_path.iterdir()] == [True]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + getattr(signal, name)
    assert error == f"builder: ended by {name}; nothing was left half done\n"
    assert list(tmp_path.iterdir()) == []
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_signal_while_the_stage_is_removed_does_not_save_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, calls = shutil.rmtree, []

    def interrupted(path: Path, **options: bool) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), staging(tmp_path, "name"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_stage_of_a_killed_build_is_swept_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _COMMAND.replace("sleep 600", "sleep 0"), str(tmp_path)]
    script = command[2].replace('"half").write_text("done")', '"half").write_text("done"); import os; os._exit(9)')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([*command[:2], script, command[3]], env=environment, check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    with staging(tmp_path, "other") as own:
        assert not left.exists()
        with staging(tmp_path, "third"):
            assert own.exists()  # a running build's
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_is_being_set_up_is_left_alone(tmp_path: Path) -> None:
    young, old = tmp_path / f"{PREFIX}young.x", tmp_path / f"{PREFIX}old.x"
    for folder in (young, old):
        folder.mkdir()
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    (tmp_path / "other.mar").touch()
    with staging(tmp_path, "name"):
        assert sorted(path.name for path in tmp_path.iterdir())[1:] == sorted([young.name, "other.mar"])


def test_what_is_finished_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "target").write_text("old")
    assert settle(tmp_path / "new", tmp_path / "target").read_text() == "new"
    assert not (tmp_path / "new").exists()
