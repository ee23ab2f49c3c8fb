"""``efft/efft.h`` for Python, by ctypes: what proves an exported folder, and what tests call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

OUTPUTS = {"hidden": 0, "first": 1, "mean": 2, "logits": 3}


class NativeError(Exception):
    """A call that failed: ``status`` of efft_status, and its line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Info(ctypes.Structure):
    """efft_info."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("hidden", ctypes.c_int64), ("vocabulary", ctypes.c_int64),
        ("segments", ctypes.c_int64), ("max_tokens", ctypes.c_int64), ("logits", ctypes.c_int64),
        ("per_token", ctypes.c_int32), ("labels", ctypes.c_int32), ("name", ctypes.c_char_p),
        ("task", ctypes.c_char_p), ("compute", ctypes.c_char_p), ("device", ctypes.c_char_p),
    ]  # fmt: skip


class Model:
    """A folder opened by a library, with one session; ``threads`` 0: all cores. Raises NativeError."""

    def __init__(self, library: Path, folder: Path, threads: int = 1) -> None:
        self.library = _declared(ctypes.CDLL(str(library)))
        self.handle, self.session = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self.library.efft_model_open(bytes(folder), ctypes.byref(self.handle)))
        self.info = Info(size=ctypes.sizeof(Info))
        self._check(self.library.efft_model_info(self.handle, ctypes.byref(self.info)))
        self._check(self.library.efft_session_create(self.handle, threads, ctypes.byref(self.session)))

    def close(self) -> None:
        """Free session and model."""
        self.library.efft_session_free(self.session)
        self.library.efft_model_free(self.handle)
        self.handle, self.session = ctypes.c_void_p(), ctypes.c_void_p()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def label(self, index: int) -> str | None:
        """The name of a logit."""
        text = self.library.efft_model_label(self.handle, index)
        return None if text is None else text.decode()

    def encode(
        self, sequences: Sequence[Sequence[int]], output: str, segments: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """Encode token ids; returns fp32 [rows, columns], see efft_output."""
        starts = np.cumsum([0, *map(len, sequences)], dtype=np.int32)
        rows, columns = ctypes.c_int64(), ctypes.c_int64()
        chosen = OUTPUTS[output]
        shape = self.library.efft_output_shape
        tokens = int(starts[-1])
        self._check(shape(self.handle, chosen, len(sequences), tokens, ctypes.byref(rows), ctypes.byref(columns)))
        out = np.full((rows.value, columns.value), np.nan, np.float32)
        types = None if segments is None else _pointer(_joined(segments))
        batch = (_pointer(_joined(sequences)), types, _pointer(starts), len(sequences))
        self._check(self.library.efft_encode(self.session, *batch, chosen, _pointer(out), out.size))
        return out

    def _check(self, status: int) -> None:
        if status:
            raise NativeError(status, self.library.efft_last_error().decode(errors="replace"))


def _joined(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.asarray(s, np.int64) for s in sequences] or [np.zeros(0, np.int64)])


def _pointer(array: np.ndarray) -> Any:
    # data_as keeps the array alive as long as the pointer.
    return array.ctypes.data_as(ctypes.c_void_p)


def _declared(library: Any) -> Any:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.efft_version.restype = library.efft_last_error.restype = library.efft_model_label.restype = ctypes.c_char_p
    library.efft_model_open.argtypes = [ctypes.c_char_p, pointer]
    library.efft_model_free.argtypes = library.efft_session_free.argtypes = [pointer]
    library.efft_model_free.restype = library.efft_session_free.restype = None
    library.efft_model_info.argtypes = [pointer, pointer]
    library.efft_model_label.argtypes = [pointer, number]
    library.efft_session_create.argtypes = [pointer, ctypes.c_int32, pointer]
    library.efft_output_shape.argtypes = [pointer, ctypes.c_int, number, number, pointer, pointer]
    library.efft_encode.argtypes = [
        pointer, pointer, pointer, pointer, number, ctypes.c_int, pointer, ctypes.c_size_t
    ]  # fmt: skip
    return library
