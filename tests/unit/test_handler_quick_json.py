"""The quick JSON reads and writes what the standard library does."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler import quick_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
ODD = [
    '{"a": 1, "a": 2}',
    "1e400",
    "-0",
    "18446744073709551617",
    "[" * 950 + "]" * 950,
    '"\\ud800"',
    " [1]\n",
    "1" * 50,
]


@pytest.fixture(params=[True, False], ids=["orjson", "without"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(quick_json, "orjson", None)


@given(value=values)
def test_every_value_survives(value: Any) -> None:
    assert json.loads(quick_json.dumps(value)) == value
    assert quick_json.loads(json.dumps(value)) == json.loads(json.dumps(value))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("text", ODD)
def test_odd_texts_are_read_as_the_standard_library_does(text: str) -> None:
    assert repr(quick_json.loads(text)) == repr(json.loads(text))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("text", ["", "{", "[1,]", "NaN", "[Infinity]", "{'a': 1}", '"\t"', "01", "1 2", '{"a" 1}'])
def test_what_is_no_json_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        quick_json.loads(text)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": -math.inf}, np.array([1.0, math.nan]), "\ud800"])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        quick_json.dumps(value)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_arrays_are_lists_of_the_same_numbers(dtype: str) -> None:
    row = np.array([[0.1, -2.5, 1e-8], [3, 4, 5]])[0 if dtype == "float32" else 1].astype(dtype)
    assert np.array_equal(np.array(json.loads(quick_json.dumps({"embedding": row}))["embedding"], dtype), row)


@pytest.mark.usefixtures("installed")
def test_a_text_may_say_null() -> None:
    assert json.loads(quick_json.dumps({"answer": "null", "other": None})) == {"answer": "null", "other": None}
