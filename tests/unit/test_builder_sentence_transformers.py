"""What folders of sentence-transformers say, and what of it is refused: in one line that names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers.sentence_transformer.modules import Pooling

from builder.checkpoint import load
from builder.errors import BuildError
from builder.sentence_transformers.folder import hub_files
from builder.sentence_transformers.head import SentenceHead, pool
from handler.config import ConfigError, SetupConfig
from tests.checkpoints import make_checkpoint
from tests.sentence_folders import HIDDEN, TANH, dense, edit, make_cross_encoder, make_folder, modules, write


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("usual") / "model", "usual")


def rows(root: Path, *types: str) -> None:
    write(root / "modules.json", [{"idx": i, "name": str(i), "path": f"{i}", "type": t} for i, t in enumerate(types)])


def _missing_weights(root: Path) -> None:
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    dense(root / "2_Dense", HIDDEN, 8, TANH)
    (root / "2_Dense" / "model.safetensors").unlink()


def _dense(root: Path, inputs: int = HIDDEN, activation: str = TANH, **settings: Any) -> None:
    modules(root, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    dense(root / "2_Dense", inputs, 8, activation, **settings)


def _settings(root: Path, **settings: Any) -> None:
    write(root / "sentence_bert_config.json", settings)


def _of_type(root: Path, kind: str) -> None:
    write(root / "config_sentence_transformers.json", {"model_type": kind})


_PLACES = ("Transformer", ""), ("Pooling", "1_Pooling")
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a module of its own code": (lambda r: rows(r, "custom_st.Transformer"), "'custom_st.Transformer' is code"),
    "SPLADE": (lambda r: modules(r, ("Transformer", ""), ("SpladePooling", "1")), "module 'SpladePooling'"),
    "a router": (lambda r: modules(r, ("Router", "")), "module 'Router' is not supported"),
    "word weights": (lambda r: modules(r, *_PLACES, ("WordWeights", "2")), "module 'WordWeights' is not supported"),
    "two poolings": (lambda r: modules(r, *_PLACES, ("Pooling", "2")), "modules are Transformer, Pooling, Pooling;"),
    "no pooling": (lambda r: modules(r, ("Transformer", "")), "its modules are Transformer;"),
    "a path outside": (lambda r: modules(r, ("Transformer", ""), ("Pooling", "../x")), "'../x', which lies outside"),
    "no settings": (lambda r: modules(r, ("Transformer", ""), ("Pooling", "2")), "Pooling, 2, has no config.json"),
    "no weights": (_missing_weights, "module Dense, 2_Dense, has no model.safetensors or pytorch_model.bin"),
    "own activation": (lambda r: _dense(r, activation="mine.Swish"), "has the activation 'mine.Swish'"),
    "no class": (lambda r: _dense(r, activation="torch.nn.functional.gelu"), "must be a torch.nn.Module class"),
    "width": (lambda r: _dense(r, inputs=48), "module Dense takes 48 dimensions, not 64"),
    "token level": (lambda r: _dense(r, module_input_name="token_embeddings"), "reads 'token_embeddings' and writes"),
    "not a list": (lambda r: write(r / "modules.json", {}), "modules.json lists no modules"),
    "no type": (lambda r: write(r / "modules.json", [{"path": ""}]), "an entry without type or path"),
    "no JSON": (lambda r: _text(r / "modules.json", "[{"), "modules.json cannot be read"),
    "pooling a list": (lambda r: write(r / "1_Pooling" / "config.json", [1]), "1_Pooling: config.json is not an"),
    "pooling broken": (lambda r: _text(r / "1_Pooling" / "config.json", "{"), "1_Pooling: config.json cannot be read"),
    "settings broken": (lambda r: _text(r / "sentence_bert_config.json", "{"), "sentence_bert_config.json cannot be"),
    "prompts a list": (
        lambda r: write(r / "config_sentence_transformers.json", {"prompts": ["a"]}),
        "the prompts in config_sentence_transformers.json are not texts by name",
    ),
    "prompt a number": (
        lambda r: write(r / "config_sentence_transformers.json", {"prompts": {"query": 5}}), "are not texts by name",
    ),
    "sparse": (lambda r: _of_type(r, "SparseEncoder"), "a sparse encoder of modules Transformer, Pooling, Normalize"),
    "multi-vector": (lambda r: _of_type(r, "MultiVectorEncoder"), "a multi-vector encoder of modules Tra"),
    "of tomorrow": (lambda r: _of_type(r, "Oracle"), "a Oracle model is not supported"),
    "length": (lambda r: _settings(r, max_seq_length=-1), "max_seq_length is -1"),
    "query length": (lambda r: _settings(r, query_length=8), "sets query_length"),
    "processing": (lambda r: _settings(r, processing_kwargs={"text": {"max_length": 9}}), "sets processing_kwargs"),
    "config_args": (lambda r: _settings(r, config_args={"hidden_act": "relu"}), "sets hidden_act of the model"),
    "default prompt": (
        lambda r: write(r / "config_sentence_transformers.json", {"default_prompt_name": "q", "prompts": {"a": "b"}}),
        "Default prompt name 'q' not found",
    ),
    "cut": (lambda r: write(r / "config_sentence_transformers.json", {"truncate_dim": 0}), "truncate_dim is 0"),
    "newer needs": (
        lambda r: write(r / "config_sentence_transformers.json", {"requirements": {"transformers": ">=99"}}),
        "cannot read it .*transformers",
    ),
}  # fmt: skip


def _text(path: Path, content: str) -> None:
    path.write_text(content)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, usual: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(usual, folder)
    spoil, message = REFUSED[name]
    spoil(folder)
    with pytest.raises(BuildError, match=message) as error:
        assert load(SetupConfig(model_name=str(folder))).sentences
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model: ")


def test_lower_casing_is_settled_by_one_of_the_two(tmp_path: Path, usual: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(usual, folder)
    _settings(folder, do_lower_case=True)
    with pytest.raises(BuildError, match="settle on one"):
        assert load(SetupConfig(model_name=str(folder), do_lower_case=False)).sentences


@pytest.mark.parametrize(
    ("labels", "keys", "task"),
    [
        (1, {}, "rerank"),
        (1, {"problem_type": "regression"}, "sequence_classification"),
        (1, {"id2label": {"0": "toxic"}}, "sequence_classification"),
        (1, {"id2label": {"0": "toxic"}, "sentence_transformers": {"version": "4.1.0"}}, "rerank"),
        (1, {"problem_type": "regression", "sbert_ce_default_activation_function": "torch.nn.Identity"}, "rerank"),
        (3, {}, "sequence_classification"),
        (3, {"sentence_transformers": {"version": "4.1.0"}}, "sequence_classification"),
    ],
)
def test_a_cross_encoder_is_known_without_being_told(tmp_path: Path, labels: int, keys: dict, task: str) -> None:
    folder = make_cross_encoder(tmp_path / "model", labels, **keys)
    assert load(SetupConfig(model_name=str(folder))).task == task
    given = SetupConfig(model_name=str(folder), task="sequence_classification")
    assert (load(given).task, load(given).note) == ("sequence_classification", None)
    modules(folder, ("Transformer", ""))
    _of_type(folder, "CrossEncoder")
    assert load(SetupConfig(model_name=str(folder))).task == ("rerank" if labels == 1 else "sequence_classification")


def test_a_guess_is_said(tmp_path: Path) -> None:
    folder = make_cross_encoder(tmp_path / "model")
    assert "served as a cross-encoder" in (load(SetupConfig(model_name=str(folder))).note or "")
    assert load(SetupConfig(model_name=str(folder), task="rerank")).note is None


@pytest.mark.parametrize("activation", ["torch.nn.Softplus", "os.system", "torch.hub.list", 7])
def test_a_config_chooses_no_other_activation(tmp_path: Path, activation: object) -> None:
    folder = make_cross_encoder(tmp_path / "model", sbert_ce_default_activation_function=activation)
    with pytest.raises(BuildError, match="the activation .* is not supported; supported: Identity, Sigmoid, Tanh"):
        assert load(SetupConfig(model_name=str(folder))).sentences


def test_a_cross_encoder_of_several_modules_is_refused(tmp_path: Path) -> None:
    folder = make_cross_encoder(tmp_path / "model")
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    _of_type(folder, "CrossEncoder")
    with pytest.raises(BuildError, match="a cross-encoder of modules Transformer, Pooling, Dense is not supported"):
        load(SetupConfig(model_name=str(folder)))


def test_modules_decide_before_the_architecture(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "bert", "fill_mask")
    assert load(SetupConfig(model_name=str(folder))).task == "fill_mask"
    modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"))
    assert load(SetupConfig(model_name=str(folder))).task == "embedding"
    assert load(SetupConfig(model_name=str(folder), task="fill_mask")).task == "fill_mask"


@pytest.mark.parametrize("mode", Pooling.POOLING_MODES)
@pytest.mark.parametrize("prompt", [0, 2])
def test_pooling_is_the_librarys_and_counts_no_pads(mode: str, prompt: int) -> None:
    torch.manual_seed(5)
    hidden = torch.randn(3, 6, 8)
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 5 + [0]])
    features = {"token_embeddings": hidden.clone(), "attention_mask": mask.clone(), "prompt_length": prompt}
    expected = Pooling(8, mode, include_prompt=False)(features)["sentence_embedding"]
    marked = mask.clone()
    marked[:, :prompt] = 2
    hidden[mask == 0] = 1e30
    torch.testing.assert_close(pool(hidden, marked, mode), expected)


def test_a_head_is_computed_in_fp32_at_least() -> None:
    head = SentenceHead(["mean", "max"], [])
    mask = torch.ones(2, 3, dtype=torch.int64)
    assert head(torch.randn(2, 3, 4, dtype=torch.bfloat16), mask).dtype == torch.float32
    assert head(torch.randn(2, 3, 4, dtype=torch.float64), mask).dtype == torch.float64


def test_a_pooling_nobody_knows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "setup.json", {"model_name": "x", "pooling": "mean+median"})
    with pytest.raises(ConfigError, match="pooling: 'median' is none of cls, mean, max"):
        SetupConfig.load(tmp_path / "setup.json")


def test_modules_of_a_hub_repository_are_fetched() -> None:
    files = [
        "config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "2_Dense/config.json",
        "2_Dense/pytorch_model.bin", "2_Dense/model.safetensors", "3_Dense/config.json", "3_Dense/pytorch_model.bin",
        "0_Transformer/sentence_bert_config.json", "0_Transformer/vocab.txt", "onnx/model.onnx",
    ]  # fmt: skip
    patterns = hub_files(files)
    assert {"2_Dense/*.safetensors", "3_Dense/pytorch_model*.bin", "0_Transformer/*.txt", "modules.json"} <= set(
        patterns
    )
    assert not [pattern for pattern in patterns if "onnx" in pattern or pattern.startswith("2_Dense/pytorch")]
    assert hub_files([file for file in files if file != "modules.json"]) == []


def test_a_transformers_version_that_is_read(tmp_path: Path, usual: Path) -> None:
    """The folder's config is transformers' own, whatever the layout."""
    folder = tmp_path / "model"
    make_folder(folder, "oldest layout")
    assert isinstance(load(SetupConfig(model_name=str(folder))).config, transformers.BertConfig)
    edit(folder / "0_Transformer" / "config.json", num_hidden_layers=1)
    assert load(SetupConfig(model_name=str(folder))).config.num_hidden_layers == 1
