"""Text back from tokens, beside transformers, for tokenizers of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from handler.config import SetupConfig
from handler.original import OriginalModel
from handler.predictor import Predictor
from handler.tasks.fill_mask import Place
from handler.tokenizer import Tokenizer as Served
from tests.checkpoints import TEXTS
from tests.unit.handler_fakes import ORIGINAL, facts

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = sorted({word for text in TEXTS for word in text.split()})
LETTERS = sorted({letter for word in WORDS for letter in word})
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
MASK = "<mask>"
SENTENCES = ["the order of the {}", "where is the {} of my account", "the {} stands on the cliff"]


def byte_bpe(*, prefix: bool, trim: bool, told: bool | None = None) -> Tokenizer:
    """RoBERTa's. ``prefix``: a space before the text; ``told``: whether the post-processor knows of it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens([AddedToken(MASK, lstrip=True, normalized=False)])
    ends = ("</s>", 2), ("<s>", 0)
    told = prefix if told is None else told
    made.post_processor = processors.RobertaProcessing(*ends, trim_offsets=trim, add_prefix_space=told)
    return made


def unigram(*, split: bool) -> Tokenizer:
    """XLM-RoBERTa's and CamemBERT's (``split``: at white space first), and the plain one."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(f"▁{word}", -3.0) for word in WORDS] + [("▁", -5.0)]
    made = Tokenizer(models.Unigram(pieces + [(letter, -6.0) for letter in [*LETTERS, *"北京是中国"]], unk_id=3))
    space = pre_tokenizers.Metaspace()
    both = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    made.pre_tokenizer = both if split else space
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([*SPECIAL[:4], AddedToken(MASK, lstrip=True, normalized=False)])
    made.post_processor = template("<s>", "</s>", 0, 2)
    return made


def wordpiece() -> Tokenizer:
    pieces = [*BERT, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS, "##ing", "北", "京"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(BERT)
    made.post_processor = template("[CLS]", "[SEP]", 2, 3)
    return made


def suffixes() -> Tokenizer:
    """HerBERT's: the end of a word is marked, not its beginning."""
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = template("<s>", "</s>", 0, 2)
    return made


def template(first: str, last: str, *ids: int) -> Any:
    special = list(zip((first, last), ids, strict=True))
    pair = f"{first} $A {last} $B {last}"
    return processors.TemplateProcessing(single=f"{first} $A {last}", pair=pair, special_tokens=special)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": wordpiece,
    "byte-bpe": lambda: byte_bpe(prefix=False, trim=True),
    "byte-bpe, offsets with spaces": lambda: byte_bpe(prefix=False, trim=False),
    "byte-bpe, a space in front": lambda: byte_bpe(prefix=True, trim=True),
    "unigram, split at white space": lambda: unigram(split=True),
    "unigram": lambda: unigram(split=False),
    "bpe with suffixes": suffixes,
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' tokenizer, and the file that an archive would hold."""
    return both(KINDS[request.param](), tmp_path_factory.mktemp("tokenizer"))


def both(made: Tokenizer, folder: Path) -> tuple[Any, Path]:
    names = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    bert = made.token_to_id("[MASK]") is not None
    tokens = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]") if bert else ("<s>", "<pad>", "</s>", "<unk>", MASK)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **dict(zip(names, tokens, strict=True)))
    path = folder / "tokenizer.json"
    theirs.backend_tokenizer.save(str(path))
    return theirs, path


def test_a_filled_mask_reads_as_transformers_decodes_it(kind: tuple[Any, Path]) -> None:
    theirs, path = kind
    own = Served(path, 64, False)
    compared = 0
    for sentence in SENTENCES:
        text = sentence.format(theirs.mask_token)
        ids = theirs(text)["input_ids"]
        place = ids.index(theirs.mask_token_id)
        span = own.backend.encode(text).offsets[place]
        filled = Place(own, text, *span, theirs.mask_token_id)
        if "<unk>" in theirs.decode(ids) or "[UNK]" in theirs.decode(ids):
            continue
        for index in range(own.vocabulary_size):
            expected = theirs.decode([*ids[:place], index, *ids[place + 1 :]], skip_special_tokens=True)
            assert filled.filled(index).strip() == expected.strip(), theirs.convert_ids_to_tokens(index)
            assert own.decode([index]) == theirs.decode([index])
            compared += 1
    assert compared >= own.vocabulary_size


@pytest.mark.parametrize(
    ("text", "token", "expected"),
    [
        ("he is order{} now", "##ing", "he is ordering now"),
        ("he is order {} now", "##ing", "he is ordering now"),
        ("where is\n{} ?", "account", "where is\naccount ?"),
        ("Where IS  {}!", "account", "Where IS  account!"),
        ("({})", "account", "(account)"),
        ("the{}", "account", "the account"),
        ("{} is", "account", "account is"),
        ("{}is", "account", "account is"),
        ("是{}京", "北", "是北京"),
        ("{}", "##ing", "##ing"),
        ("the {}.", "[SEP]", "the."),
    ],
)
def test_word_pieces_in_the_text_as_it_was_sent(tmp_path: Path, text: str, token: str, expected: str) -> None:
    _, path = both(wordpiece(), tmp_path)
    assert fill(path, text.format("[MASK]"), token, "[MASK]") == expected


@pytest.mark.parametrize("name", ["byte-bpe", "byte-bpe, offsets with spaces", "unigram, split at white space"])
def test_a_mask_that_takes_the_space_before_it(tmp_path: Path, name: str) -> None:
    _, path = both(KINDS[name](), tmp_path)
    begins, goes_on = ("▁order", "e") if "unigram" in name else ("Ġorder", "e")
    if Served(path, 64, False).backend.token_to_id(begins) is None:
        begins = "Ġo"
    word = begins[1:]
    assert fill(path, f"the  Big {MASK}!", begins, MASK) == f"the  Big {word}!"
    assert fill(path, f"the\n{MASK}", begins, MASK) == f"the\n{word}"
    assert fill(path, f"th {MASK} x", goes_on, MASK) == "the x"
    assert fill(path, f"the {MASK} and {MASK}", begins, MASK) == f"the {word} and {MASK}"


def fill(path: Path, text: str, token: str, mask: str) -> str:
    own = Served(path, 64, False)
    encoding = own.backend.encode(text)
    mask_id, index = own.backend.token_to_id(mask), own.backend.token_to_id(token)
    assert mask_id is not None
    assert index is not None
    return Place(own, text, *encoding.offsets[encoding.ids.index(mask_id)], mask_id).filled(index)


def tagger(theirs: Any, path: Path, folder: Path) -> tuple[Predictor, Any]:
    """A small random model behind the handler and behind transformers' pipeline."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.RobertaConfig(
        **sizes, vocab_size=len(theirs), max_position_embeddings=80, type_vocab_size=1, initializer_range=1.0,
        pad_token_id=theirs.pad_token_id, id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    model = transformers.RobertaForTokenClassification(config).eval()
    model.save_pretrained(folder)
    own = facts("token_classification", family="roberta", model=ORIGINAL, max_positions=64, uses_segments=False,
                pad_id=theirs.pad_token_id, labels=LABELS)  # fmt: skip
    served = Served(path, 64, False)
    predictor = Predictor(own, SetupConfig(model_name="x"), served, OriginalModel(folder, own, torch.device("cpu")))
    return predictor, transformers.TokenClassificationPipeline(model=model, tokenizer=theirs, device="cpu")


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_entities_are_the_pipelines(kind: tuple[Any, Path], strategy: str, tmp_path: Path) -> None:
    theirs, path = kind
    own, pipeline = tagger(theirs, path, tmp_path)
    texts = [*TEXTS, "Where is my order, Anna Lindqvist?", "two  spaces ", "北京是中国 and Visby"]
    if strategy in ("first", "average", "max") and own.task.tokenizer.knows_words:
        texts = TEXTS  # where letters are unknown the pipeline takes each for a word
    for text in texts:
        expected = pipeline(text, aggregation_strategy=strategy)
        found = own({"text": text, "aggregation": strategy})["entities"]
        labels = [[e.get("entity_group") or e["entity"], e["start"], e["end"]] for e in expected]
        assert [[e["label"], e["start"], e["end"]] for e in found] == labels, text
        assert [e["score"] for e in found] == pytest.approx([float(e["score"]) for e in expected], abs=1e-4)


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\t", "\n", "\u2009", "\r\n"])
def test_every_kind_of_white_space_parts_words(kind: tuple[Any, Path], space: str, tmp_path: Path) -> None:
    """An entity made of words begins and ends where words do."""
    theirs, path = kind
    own, _ = tagger(theirs, path, tmp_path)
    words = ["the", "parcel", "has", "not", "arrived"]
    text = space.join(words)
    begins = {0, *(place + len(space) for place in range(len(text)) if text.startswith(space, place))}
    for how in ("first", "average", "max"):
        found = own({"text": text, "aggregation": how})["entities"]
        assert found
        for entity in found:
            assert entity["start"] + len(entity["word"]) - len(entity["word"].lstrip()) in begins, (how, entity)


@pytest.mark.parametrize("told", [True, False])
def test_no_first_letter_is_lost(tmp_path: Path, told: bool) -> None:
    """A space put in front of a text, of which the post-processor may not know, is not cut off the text itself."""
    made = byte_bpe(prefix=True, trim=True, told=told)
    _, path = both(made, tmp_path)
    text = "where is my order"
    (result,) = Served(path, 64, False).encode([text], ["truncate"], [0], offsets=True)
    assert not isinstance(result, Exception)
    offsets = result.sequences[0].offsets
    assert offsets is not None
    covered = {place for start, end in offsets for place in range(start, end)}
    assert {place for place, letter in enumerate(text) if letter != " "} <= covered


def test_combining_marks_stay_on_their_letters(kind: tuple[Any, Path], tmp_path: Path) -> None:
    theirs, path = kind
    own, _ = tagger(theirs, path, tmp_path)
    text = "re\u0301sume\u0301 of the cafe\u0301"
    for how in ("simple", "first", "average", "max"):
        for entity in own({"text": text, "aggregation": how})["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["word"]
            assert not entity["word"].startswith("\u0301")
            assert text[entity["end"] : entity["end"] + 1] != "\u0301"
