"""JSON by orjson where it is installed, by the standard library elsewhere: the same values, in a fraction of the time.

orjson knows things that JSON's own rules leave open otherwise than the standard library does; whatever it refuses, or
might read or write differently, goes to the standard library, so that an answer does not hang on what is installed.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import numpy as np

try:
    import orjson
except ImportError:  # an older server's environment: slower, not wrong
    orjson = None  # type: ignore[assignment]

_LONG_NUMBER: Final = re.compile(r"[0-9]{19}")
"""orjson makes a float of an integer beyond 64 bits."""
_DEEP: Final = 900
"""Brackets that may open before the depth is left to the standard library: far below where either gives up."""


_TEXT: Final = {str}


def _not_a_number(name: str) -> Any:
    raise ValueError(name)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_not_a_number)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)
"""Both made once: json.loads and json.dumps make a new one at each call that has an option."""


def loads(text: str) -> Any:
    """The value of a JSON text. Raises ValueError (JSONDecodeError with the place) and RecursionError."""
    if orjson is not None and text.count("[") + text.count("{") < _DEEP:
        try:
            value = orjson.loads(text)
        except ValueError:
            pass  # the standard library may know better, and says better why not
        else:
            if _only_texts(value) or not _LONG_NUMBER.search(text):
                return value
    return _DECODER.decode(text)


def object_of_texts(raw: bytes | bytearray) -> dict[str, str] | None:
    """The value of a body in UTF-8 that begins with an object and is one of texts alone; None for any other, and for
    what is no JSON: :func:`loads` says what."""
    if orjson is None or raw[:1] != b"{" or (len(raw) >= _DEEP and raw.count(b"[") + raw.count(b"{") >= _DEEP):
        return None
    try:
        value = orjson.loads(raw)
    except ValueError:
        return None
    return value if _only_texts(value) else None


def _only_texts(value: Any) -> bool:
    """Whether it is an object without numbers, as most requests are: then the text need not be searched for any."""
    if type(value) is not dict:
        return False
    return set(map(type, value.values())) <= _TEXT


def dumps(value: Any) -> bytes:
    """A value as UTF-8; numpy arrays as lists, fp32 numbers as short as they may be.

    Raises ValueError for what JSON cannot hold: NaN, infinity, half of a surrogate pair.
    """
    if orjson is not None:
        try:
            body: bytes = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError:
            pass
        else:
            if b"null" not in body:  # which is also what it makes of NaN
                return body
    return _ENCODER.encode(value).encode()
