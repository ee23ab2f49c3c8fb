"""Wrong arguments and damaged folders: a status and one line, and the library goes on."""

from __future__ import annotations

import ctypes
import json
import random
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builder.native.binding import Model, NativeError
from tests.native.conftest import ROWS, Export

INVALID, BAD_MODEL, UNSUPPORTED, BUSY = 1, 2, 3, 4


def split(weights: bytes) -> tuple[dict[str, dict[str, object]], bytes]:
    """A safetensors file's header and data."""
    (size,) = struct.unpack("<Q", weights[:8])
    return json.loads(weights[8 : 8 + size]), weights[8 + size :]


def join(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def edited(key: str, **changes: object) -> Callable[[bytes], bytes]:
    def edit(weights: bytes) -> bytes:
        header, data = split(weights)
        header[key].update(changes)
        return join(header, data)

    return edit


WEIGHTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda w: b"", "too short for a header"),
    "cut off": (lambda w: w[:-5], "cut off"),
    "longer": (lambda w: w + b"12", "its tensors take"),
    "a header of 2^63 bytes": (lambda w: struct.pack("<Q", 2**63) + w[8:], "its header claims 9223372036854775808"),
    "a header beyond the end": (lambda w: struct.pack("<Q", len(w) - 7) + w[8:], "its header claims"),
    "not JSON": (lambda w: join(b"{" + b"[" * 500, split(w)[1]), "not JSON"),
    "nested": (lambda w: join(b"[" * 100000, b""), "nested too deeply"),
    "a list": (lambda w: join([], split(w)[1]), "not an object"),
    "a key twice": (lambda w: join(b'{"word":1,"word":2}', b""), "given twice"),
    "offsets beyond the end": (edited("word", data_offsets=[0, 2**50]), "not within the file"),
    "offsets backwards": (edited("word", data_offsets=[64, 0]), "not within the file"),
    "offsets below 0": (edited("word", data_offsets=[-8, 0]), "whole number"),
    "a size of 2^53": (edited("word", shape=[2**53, 2**53]), "more elements"),
    "a size and a half": (edited("word", shape=[1.5, 2]), "whole number"),
    "another shape": (edited("word", shape=[3, 7]), "do not fit"),
    "another type": (edited("word", dtype="F64"), "type F64"),
    "no dtype": (edited("word", dtype=None), "dtype is missing"),
    "overlapping": (lambda w: _overlapping(w), "overlap"),
    "without vectors": (lambda w: _without(w, "vectors"), "no tensor vectors|gaps|its tensors take"),
}


def _overlapping(weights: bytes) -> bytes:
    header, data = split(weights)
    first, second = sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])[1:3]
    begin, end = header[second]["data_offsets"]  # type: ignore[misc]
    step = end - begin
    start = header[first]["data_offsets"][0]  # type: ignore[index]
    header[second]["data_offsets"] = [start, start + step]
    return join(header, data)


def _without(weights: bytes, name: str) -> bytes:
    header, data = split(weights)
    del header[name]
    return join(header, data)


SPECS: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda s: "", "not JSON at byte 0"),
    "another format": (lambda s: s.replace("efft-native/1", "efft-native/9"), "format efft-native/9"),
    "another size": (lambda s: s.replace("layers=2", "layers=3"), "matrices has"),
    "an unknown key": (lambda s: s.replace("layers=2", "layers=2 colour=4"), "colour"),
    "too many layers": (lambda s: s.replace("layers=2", "layers=99999999999"), "layers"),
    "more tokens than positions": (lambda s: s.replace('"max_tokens": 140', '"max_tokens": 999'), "positions for"),
    "an unknown step": (lambda s: s.replace('"tanh"', '"cosine"'), "head step 1: op cosine"),
    "a missing tensor": (lambda s: s.replace("head.2.weight", "head.9.weight"), "no tensor head.9.weight"),
    "a wrong width": (lambda s: s.replace("head.2.weight", "word"), "head step 2"),
    "a mean of one row": (lambda s: s.replace('"tanh"', '"mean"'), "mean of"),
}


def damaged(folder: Path, source: Path, *, weights: bytes | None = None, spec: str | None = None) -> Path:
    shutil.copytree(source, folder)
    if weights is not None:
        (folder / "weights.safetensors").write_bytes(weights)
    if spec is not None:
        (folder / "spec.json").write_text(spec)
    return folder


def refused(library: Path, folder: Path) -> str:
    with pytest.raises(NativeError) as error:
        Model(library, folder)
    assert error.value.status == BAD_MODEL
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("case", WEIGHTS)
def test_damaged_weights(export: Export, library: Path, tmp_path: Path, case: str) -> None:
    damage, says = WEIGHTS[case]
    source = export().folder
    text = refused(
        library, damaged(tmp_path / "m", source, weights=damage((source / "weights.safetensors").read_bytes()))
    )
    assert text.startswith("weights.safetensors: ")
    assert any(part in text for part in says.split("|")), text


@pytest.mark.parametrize("case", SPECS)
def test_damaged_specs(export: Export, library: Path, tmp_path: Path, case: str) -> None:
    damage, says = SPECS[case]
    source = export().folder
    before = (source / "spec.json").read_text()
    assert damage(before) != before
    assert says in refused(library, damaged(tmp_path / "m", source, spec=damage(before)))


def test_missing_files(export: Export, library: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(library, tmp_path / "nowhere")
    folder = damaged(tmp_path / "m", export().folder)
    (folder / "weights.safetensors").unlink()
    assert "weights.safetensors: No such file" in refused(library, folder)
    (folder / "weights.safetensors").mkdir()
    assert "not a file" in refused(library, folder)


def tried(library: Path, folder: Path) -> str | None:
    """The line of a folder that does not open or run; None for one that does."""
    try:
        with Model(library, folder) as model:
            model.encode(ROWS, "hidden")
    except NativeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("data_type", ["fp32", "int8"])
def test_bytes_changed_at_random_never_crash(export: Export, library: Path, tmp_path: Path, data_type: str) -> None:
    """Either a line or a model that computes something."""
    keys = {"compute": "bf16", "scheme": "int8"} if data_type == "int8" else {}
    source = export(**keys).folder
    weights, spec = (source / "weights.safetensors").read_bytes(), (source / "spec.json").read_bytes()
    header, _ = split(weights)
    begin = 8 + struct.unpack("<Q", weights[:8])[0] + header["matrices"]["data_offsets"][0]  # type: ignore[index]
    folder, chance, lines = damaged(tmp_path / "m", source), random.Random(3), 0
    for round_ in range(150):
        # A header, an 8-bit block's own header and entries, or the description.
        name, content, at, room = [
            ("weights.safetensors", weights, 0, begin - 8), ("weights.safetensors", weights, begin, 400),
            ("spec.json", spec, 0, len(spec)),
        ][round_ % 3]  # fmt: skip
        changed = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            changed[at + chance.randrange(room)] = chance.randrange(256)
        (folder / name).write_bytes(changed)
        said = tried(library, folder)
        lines += said is not None
        assert said is None or (said and said.isprintable())
        (folder / name).write_bytes(content)
    assert lines > 20


def test_wrong_arguments(export: Export, library: Path) -> None:
    with Model(library, export().folder) as model:
        before = model.encode(ROWS, "logits")
        for rows, says in (
            ([[2, 999999]], r"ids\[1\] is 999999"), ([[2], [-1]], r"ids\[1\] is -1"),
            ([[2] * 141], "sequence 0 has 141 tokens, the model takes 140"),
        ):  # fmt: skip
            with pytest.raises(NativeError, match=says) as error:
                model.encode(rows, "logits")
            assert error.value.status == INVALID
        with pytest.raises(NativeError, match=r"segments\[0\] is 2") as error:
            model.encode([[2]], "logits", [[2]])
        np.testing.assert_array_equal(model.encode(ROWS, "logits"), before)


def test_wrong_pointers_and_sizes(export: Export, library: Path) -> None:
    with Model(library, export().folder) as model:
        encode, last = model.library.efft_encode, model.library.efft_last_error
        ids = (ctypes.c_int64 * 4)(2, 3, 4, 5)
        out = (ctypes.c_float * 64)(*([7.0] * 64))

        def call(
            starts: list[int], output: int = 1, room: int = 64, session: object = model.session
        ) -> tuple[int, str]:
            array = (ctypes.c_int32 * len(starts))(*starts)
            return encode(session, ids, None, array, len(starts) - 1, output, out, room), last().decode()

        assert call([0, 4])[0] == 0
        out[0] = 7.0
        assert call([1, 4]) == (INVALID, "cu_seqlens does not begin with 0")
        assert call([0, 4, 2]) == (INVALID, "cu_seqlens falls at 2")
        assert call([0, 4], output=9) == (INVALID, "output is 9, which is none of efft_output")
        assert call([0, 4], room=63) == (INVALID, "out has room for 63 elements, the result has 64")
        assert call([0, 4], session=None) == (INVALID, "session is NULL")
        assert encode(model.session, None, None, (ctypes.c_int32 * 2)(0, 4), 1, 1, out, 64) == INVALID
        assert out[0] == 7.0
        assert model.library.efft_model_open(None, ctypes.byref(ctypes.c_void_p())) == INVALID
        assert model.library.efft_session_create(model.handle, -1, ctypes.byref(ctypes.c_void_p())) == INVALID
        model.library.efft_model_free(None)
        model.library.efft_session_free(None)


def test_a_folder_without_a_head_gives_hidden_states(export: Export, library: Path, tmp_path: Path) -> None:
    source = export().folder
    spec = json.loads((source / "spec.json").read_text())
    with Model(library, damaged(tmp_path / "m", source, spec=json.dumps({**spec, "head": None}))) as model:
        assert model.encode(ROWS, "hidden").shape == (16, 64)
        assert model.info.logits == 0
        with pytest.raises(NativeError, match="holds no head") as error:
            model.encode(ROWS, "logits")
        assert error.value.status == UNSUPPORTED


def test_a_model_may_go_before_its_sessions(export: Export, library: Path) -> None:
    model = Model(library, export().folder)
    before = model.encode(ROWS, "first")
    session, shape = model.session, before.shape
    other = Model(library, export().folder)
    model.library.efft_model_free(model.handle)
    model.handle = other.handle  # for shapes; the session is the first model's
    np.testing.assert_array_equal(model.encode(ROWS, "first"), before)
    assert shape == (len(ROWS), 64)
    other.library.efft_session_free(session)
    other.close()


def test_one_session_in_two_threads_is_told(export: Export, library: Path) -> None:
    """The second thread's call is refused; the first one's result is untouched."""
    with Model(library, export().folder) as model:
        long = [[2 + i % 40 for i in range(140)]] * 400
        wanted = model.encode(long, "first")
        made: list[np.ndarray] = []
        told: list[int] = []

        def encode(rows: list[list[int]]) -> None:
            try:
                made.append(model.encode(rows, "first"))
            except NativeError as error:
                told.append(error.status)

        thread = threading.Thread(target=encode, args=(long,))
        thread.start()
        while thread.is_alive() and not told:
            encode(ROWS)
        thread.join()
        assert set(told) == {BUSY}
        for result in made:
            if len(result) == len(long):
                np.testing.assert_array_equal(result, wanted)
