"""An archive is what its builder wrote, or it is refused with the name of what differs."""

from __future__ import annotations

import io
import json
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.cli import main as builder
from builder.compile import ROOT
from builder.mar import pack, replace_files, rewrite
from builder.signing import keygen, sign
from handler import integrity
from handler.archive import ArchiveError, ArchiveFacts
from handler.doctor import main as doctor
from handler.predictor import Predictor
from tests.unit.handler_fakes import PooledLogits, facts, save_archive

NAMES = [
    "MAR-INF/MANIFEST.json", "archive.json", "model-config.yaml", "model.pt", "service.py", "setup_config.json",
    "tokenizer.json", *sorted(f"handler/{path.relative_to(ROOT / 'handler')}" for path in ROOT.glob("handler/**/*.py")),
]  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive, packed as the builder packs."""
    folder = tmp_path_factory.mktemp("archive")
    stage = save_archive(folder / "work" / "stage", PooledLogits(2), "sequence_classification", {"warm_up": False})
    shutil.copytree(ROOT / "handler", stage / "handler", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "handler" / "service.py", stage / "service.py")
    (stage / "model-config.yaml").write_text("batchSize: 1\n")
    return pack(stage, facts("sequence_classification", name="small"), folder)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    secret = tmp_path_factory.mktemp("keys") / "own"
    keygen(secret)
    return secret


@pytest.fixture(scope="module")
def signed(archive: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("signed") / "small.mar"
    shutil.copyfile(archive, copy)
    sign(copy, keys)
    return copy


def _content(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as packed:
        return packed.read(name)


def _flipped(content: bytes, place: int | None = None) -> bytes:
    place = len(content) // 2 if place is None else place
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _extract(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    return folder


def _check(folder: Path) -> None:
    integrity.check(folder, ArchiveFacts.load(folder / "archive.json"))


def test_an_archive_as_built_passes(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(zipfile.ZipFile(archive).namelist()) == sorted(NAMES)
    assert set(integrity.check_packed(archive).files) == set(NAMES) - {"archive.json"}
    _check(_extract(archive, tmp_path / "files"))
    assert builder(["verify", str(archive)]) == 0
    assert f"{len(NAMES)} files as built" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_byte_changed_in_a_file_is_refused_by_its_name(archive: Path, tmp_path: Path, name: str) -> None:
    content = _content(archive, name)
    for place in {0, len(content) // 2, len(content) - 1} if content else ():
        changed = tmp_path / "changed.mar"
        rewrite(archive, changed, {name: _flipped(content, place)})  # the zip's own checksums agree again
        assert zipfile.ZipFile(changed).testzip() is None
        with pytest.raises(ArchiveError, match=name):
            integrity.check_packed(changed)
        with pytest.raises(ArchiveError, match=name):
            _check(_extract(changed, tmp_path / "files"))


def test_every_byte_of_archive_json_counts(archive: Path, tmp_path: Path) -> None:
    folder = _extract(archive, tmp_path / "files")
    content = (folder / "archive.json").read_bytes()
    for place in range(0, len(content), 11):
        (folder / "archive.json").write_bytes(_flipped(content, place))
        with pytest.raises(ArchiveError, match=r"archive\.json"):
            _check(folder)


def test_worker_doctor_and_verify_say_it_before_anything_is_used(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "changed.mar"
    rewrite(archive, changed, {"tokenizer.json": b"{}"})
    with pytest.raises(ArchiveError, match=r"^tokenizer.json is not the file the archive was built with; build it"):
        Predictor.load(_extract(changed, tmp_path / "files"))
    out = io.StringIO()
    assert doctor([str(changed)], out) == 1
    assert out.getvalue() == "not servable: tokenizer.json is not the file the archive was built with; build it again\n"
    assert builder(["verify", str(archive), str(changed)]) == 1
    captured = capsys.readouterr()
    assert "changed.mar: REFUSED: tokenizer.json is not the file" in captured.out
    assert captured.err == "builder: 1 of 2 archives refused\n"


def test_a_file_missing_or_too_many_is_named(archive: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.mar"
    rewrite(archive, changed, {"handler/html.py": None})
    with pytest.raises(ArchiveError, match=r"^handler/html.py is missing from the archive"):
        integrity.check_packed(changed)
    rewrite(archive, changed, {"handler/__pycache__/html.cpython-311.pyc": b"x"})
    with pytest.raises(ArchiveError, match=r"^handler/__pycache__/html.cpython-311.pyc does not belong to the archive"):
        integrity.check_packed(changed)
    folder = _extract(archive, tmp_path / "files")
    for harmless in ("handler/__pycache__/html.cpython-311.pyc", "core.4711"):  # what a worker leaves there
        (folder / harmless).parent.mkdir(exist_ok=True)
        (folder / harmless).write_bytes(b"x")
    _check(folder)
    (folder / "sitecustomize.py").write_text("")
    with pytest.raises(ArchiveError, match=r"^sitecustomize.py does not belong to the archive; remove it"):
        _check(folder)
    (folder / "sitecustomize.py").unlink()
    (folder / "model.pt").unlink()
    with pytest.raises(ArchiveError, match=r"^model.pt is missing from the archive"):
        _check(folder)


def _hidden(path: Path) -> None:
    """An entry that only those see who read from the beginning: its place in the table is lost."""
    content = path.read_bytes()
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as packed:
        packed.writestr("handler/predictor.py", "evil")
    entry = other.getvalue()[: other.getvalue().index(b"PK\1\2")]
    with zipfile.ZipFile(path) as packed:
        start, end = packed.start_dir, len(content)
    tail = bytearray(content[end - 22 :])
    tail[16:20] = (start + len(entry)).to_bytes(4, "little")
    path.write_bytes(content[:start] + entry + content[start : end - 22] + bytes(tail))


def _renamed(path: Path) -> None:
    """An entry whose own header and the table call it differently."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as packed:
        place = packed.getinfo("handler/html.py").header_offset + 30
    path.write_bytes(content[:place] + b"handler/html.pz" + content[place + 15 :])


def _twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr("handler/html.py", packed.read("handler/html.py"))


@pytest.mark.parametrize("spoil", [_hidden, _renamed, _twice])
def test_a_zip_that_can_be_read_in_two_ways_is_refused(
    archive: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    copy = tmp_path / "small.mar"
    shutil.copyfile(archive, copy)
    integrity.check_packed(copy)
    spoil(copy)
    with pytest.raises(ArchiveError, match="not as the builder writes it|between its files and its table"):
        integrity.check_packed(copy)


def test_an_archive_without_digests_is_served_with_a_line(
    archive: Path, keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.mar"
    known = json.loads(_content(archive, "archive.json"))
    rewrite(archive, old, {"archive.json": json.dumps({**known, "files": {}, "digest": ""}).encode()})
    folder = _extract(old, tmp_path / "files")
    Predictor.load(folder)
    assert "small carries no digests (it was built by 0.1.0); its files are not checked" in caplog.messages
    assert not integrity.check_packed(old).files
    monkeypatch.setenv(integrity.PUBLIC_KEY, str(keys.with_name("own.pub")))
    with pytest.raises(ArchiveError, match="the archive is not signed, and EFFT_PUBLIC_KEY asks for it"):
        Predictor.load(folder)
    assert builder(["sign", str(old), "--key", str(keys)]) == 1


@pytest.mark.parametrize("name", [*NAMES, "archive.sig.json"])
def test_no_file_of_a_signed_archive_can_be_changed(signed: Path, keys: Path, tmp_path: Path, name: str) -> None:
    """Whoever changes a file can make its digest fit as well; then the signature does not."""
    public = keys.with_name("own.pub")
    integrity.check_packed(signed, public)
    changed = tmp_path / "changed.mar"
    content = _content(signed, name)
    rewrite(signed, changed, {name: _flipped(content) if content else b"#"})
    with pytest.raises(ArchiveError, match=name):
        integrity.check_packed(changed, public)
    if name not in ("archive.json", "archive.sig.json"):
        shutil.copyfile(signed, changed)
        replace_files(changed, {name: _flipped(content) if content else b"#"})
        integrity.check_packed(changed)
        with pytest.raises(ArchiveError, match="not signed"):
            integrity.check_packed(changed, public)
        rewrite(changed, tmp_path / "forged.mar", {"archive.sig.json": _content(signed, "archive.sig.json")})
        with pytest.raises(ArchiveError, match=r"^archive.json is not the file that was signed"):
            integrity.check_packed(tmp_path / "forged.mar", public)


def test_a_worker_asks_for_a_signature_where_the_server_says_so(
    archive: Path, signed: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    public = keygen(other)
    monkeypatch.setenv(integrity.PUBLIC_KEY, str(keys.with_name("own.pub")))
    Predictor.load(_extract(signed, tmp_path / "signed"))
    with pytest.raises(ArchiveError, match=r"is not signed.*builder sign"):
        Predictor.load(_extract(archive, tmp_path / "unsigned"))
    monkeypatch.setenv(integrity.PUBLIC_KEY, str(public))
    with pytest.raises(ArchiveError, match="is signed by key [0-9a-f]{16}, which is none of other.pub's"):
        Predictor.load(tmp_path / "signed")
    both = tmp_path / "both.pub"  # while one key replaces the other
    both.write_bytes(public.read_bytes() + keys.with_name("own.pub").read_bytes())
    monkeypatch.setenv(integrity.PUBLIC_KEY, str(both))
    Predictor.load(tmp_path / "signed")
    both.write_text("no key")
    with pytest.raises(ArchiveError, match=r"both.pub is not a PEM file of public keys"):
        Predictor.load(tmp_path / "signed")
    both.unlink()
    with pytest.raises(ArchiveError, match=r"both.pub cannot be read \(No such file"):
        Predictor.load(tmp_path / "signed")


def test_what_changes_an_archive_takes_its_signature_away(signed: Path, keys: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small.mar"
    shutil.copyfile(signed, copy)
    assert replace_files(copy, {"model-config.yaml": b"batchSize: 2\n"})
    assert "archive.sig.json" not in zipfile.ZipFile(copy).namelist()
    integrity.check_packed(copy)
    assert not replace_files(copy, {"model-config.yaml": b"batchSize: 1\n"})
    sign(copy, keys)
    assert copy.read_bytes() == signed.read_bytes()


def test_what_is_no_key_is_said_in_a_line(
    archive: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (keys.stat().st_mode & 0o777) == 0o600
    for command, message in (
        (["keygen", str(keys)], "own.pub exists; a key is never overwritten"),
        (["keygen", str(tmp_path / "no" / "folder")], "cannot be written (No such file or directory)"),
        (["sign", str(archive), "--key", str(keys.with_name("own.pub"))], "is not a PEM file of a secret key"),
        (["sign", str(archive), "--key", str(tmp_path / "none")], "cannot be read (No such file or directory)"),
        (["sign", str(tmp_path / "none.mar"), "--key", str(keys)], "none.mar cannot be read"),
    ):
        assert builder(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_the_doctor_asks_the_archives_own_handler(archive: Path, tmp_path: Path) -> None:
    changed = tmp_path / "small.mar"
    shutil.copyfile(archive, changed)
    own = b"def examine(folder, gpu, out):\n    import handler\n    out.write(f'asked {handler.__file__}\\n')\n"
    replace_files(changed, {"handler/doctor.py": own})
    out = io.StringIO()
    assert doctor([str(changed)], out) == 0
    first, second = out.getvalue().splitlines()
    assert first == f"files     {len(NAMES)} as built"
    assert second.endswith("/archive/handler/__init__.py")
    assert str(ROOT) not in second
    replace_files(changed, {"handler/doctor.py": b"import os\nos.kill(os.getpid(), 11)\n"})
    assert doctor([str(changed)], out) == 1
    assert out.getvalue().endswith("not servable: the archive's handler was ended by signal 11\n")
    replace_files(changed, {"handler/doctor.py": b"import nothing_of_that_name\n"})
    assert doctor([str(changed)], out) == 1
    last = out.getvalue().splitlines()[-1]
    assert last.startswith("not servable: the archive's handler failed (ModuleNotFoundError: No module named 'nothing")


def test_a_stage_is_not_called_old(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_archive(tmp_path, PooledLogits(2), "sequence_classification", {"warm_up": False})
    with caplog.at_level(logging.WARNING):
        Predictor.load(folder)
    assert "digests" not in caplog.text
