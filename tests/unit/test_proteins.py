"""The fast form of ESM's tokenizer reads every text as transformers' own does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import BuildError
from builder.proteins import fast_form
from tests.checkpoints import make_checkpoint

PIECES = [
    "M",
    "K",
    "T",
    "<mask>",
    "<cls>",
    "<eos>",
    "<unk>",
    "<pad>",
    " ",
    "\n",
    "\x1c",
    "\u3000",
    "-",
    ".",
    "a",
    "9",
    "<",
    "mask>",
    "É",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    import transformers

    folder: Path = make_checkpoint(tmp_path_factory.mktemp("esm"), "esm", "embedding")
    slow = transformers.EsmTokenizer.from_pretrained(folder)
    return slow, fast_form(slow, "esm")


@settings(max_examples=150)
@given(st.lists(st.sampled_from(PIECES) | st.characters(), max_size=12).map("".join))
def test_every_text(pair, text: str) -> None:
    slow, fast = pair
    assert fast(text).input_ids == slow(text).input_ids
    assert fast(text, "MK T").input_ids == slow(text, "MK T").input_ids


def test_one_that_reads_otherwise_is_refused(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, _ = pair
    monkeypatch.setattr("builder.proteins._SPACE", "K+")
    with pytest.raises(BuildError, match="the fast form|fast form reads"):
        fast_form(slow, "esm")
