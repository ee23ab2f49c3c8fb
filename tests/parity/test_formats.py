"""The same model as TorchScript and as torch.export: the same bits, for every task and both encoders."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builder.archive import LibraryFile, write_files
from builder.checkpoint import load
from builder.formats import WRITERS
from builder.formats.torchscript import example_inputs
from builder.gate.parity import judge_stage
from builder.models import packed_model, stock_model
from builder.sentence_transformers.head import Dense, Normalize, SentenceHead
from handler.archive import ArchiveError, ArchiveFacts
from handler.config import POOLINGS, SetupConfig
from handler.engine import Engine
from handler.formats import load_file
from handler.runtime import load_model
from handler.spellings import FILES
from handler.tasks import TASKS
from tests.checkpoints import HEADS, make_checkpoint
from tests.sentence_folders import make_cross_encoder, make_folder

SHAPES = [(1, 1), (1, 7), (3, 1), (2, 16), (5, 33), (1, 128), (20, 9)]
CPU = torch.device("cpu")
CASES = [
    *(("bert", task, encoder, "fp32") for task in HEADS for encoder in ("fused", "stock")),
    *((family, "token_classification", "stock", "fp32") for family in ("roberta", "distilbert", "electra")),
    ("electra", "question_answering", "fused", "fp32"), ("roberta", "fill_mask", "fused", "fp32"),
    ("bert", "fill_mask", "fused", "bf16"), ("roberta", "sequence_classification", "stock", "bf16"),
]  # fmt: skip


def settings(model_format: str, model: Path, **keys: object) -> SetupConfig:
    return SetupConfig.model_validate({"model_name": str(model), "format": model_format, "warm_up": False, **keys})


def stage(folder: Path, library: Path, model_format: str, model: Path, **keys: object) -> Path:
    """What an archive holds, as the builder stages it."""
    config = settings(model_format, model, **keys)
    target = folder / model_format
    target.mkdir()
    libraries = [LibraryFile(library, "cpu", ["x86_64"])] if config.encoder == "fused" else []
    write_files(target, "formats", config, load(config), libraries, lambda _: None)
    return target


def outputs(folder: Path) -> list[tuple[np.ndarray, ...]]:
    """Of a loaded stage on inputs of every shape, some rows of them shorter."""
    facts = ArchiveFacts.load(folder / "archive.json")
    model = load_model(folder, facts, SetupConfig.load(folder / "setup_config.json"))
    batches = [tuple(tensor.numpy() for tensor in example_inputs(50, *shape)) for shape in SHAPES]
    padded = [model(*batch) for batch in batches]
    if facts.model.packed:
        for batch, made in zip(batches, padded, strict=True):
            packed_as_padded(model, batch, made, TASKS[facts.task].per_token)
    return padded


def packed_as_padded(model: Any, batch: tuple[np.ndarray, ...], padded: tuple[np.ndarray, ...], tokens: bool) -> None:
    """A packed call has the bits of a padded one, where there is no pad. ``tokens``: outputs have a row for each."""
    ids, segments, mask = batch
    valid = mask != 0
    offsets = np.concatenate([[0], valid.sum(1).cumsum()])
    for ours, theirs in zip(model(ids[valid], segments[valid], offsets), padded, strict=True):
        np.testing.assert_array_equal(ours, theirs[valid] if tokens else theirs)


def same(one: list[tuple[np.ndarray, ...]], other: list[tuple[np.ndarray, ...]]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype == np.float32
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("family", "task", "encoder", "compute"), CASES)
def test_both_formats_give_the_same_bits(
    tmp_path: Path, cpu_library: Path, family: str, task: str, encoder: str, compute: str
) -> None:
    model = make_checkpoint(tmp_path / "model", family, task)
    given = {"encoder": encoder, "compute": compute}
    traced, exported = (stage(tmp_path, cpu_library, name, model, **given) for name in ("torchscript", "export"))
    same(outputs(traced), outputs(exported))
    assert ArchiveFacts.load(traced / "archive.json").model.packed == (encoder == "fused")
    assert not (exported / FILES["torchscript"]).exists()
    assert str(Path(__file__).parents[2]).encode() not in (exported / FILES["export"]).read_bytes()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_program_takes_all_that_it_makes_to_another_device(tmp_path: Path, family: str) -> None:
    """To one that computes nothing, as no GPU is here; tests/gpu/test_formats.py runs them on one."""
    checkpoint = load(settings("export", make_checkpoint(tmp_path / "model", family, "question_answering")))
    module = stock_model(checkpoint, torch.float32, pooling=None)
    WRITERS["export"](module, example_inputs(50, 3, 8), tmp_path / "model.pt2")
    moved = load_file(tmp_path / "model.pt2", "export", torch.device("meta"))
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
    named = [value for node in moved.graph.nodes for value in (*node.args, *node.kwargs.values())]
    assert not [value for value in named if isinstance(value, torch.device) and value.type == "cpu"]
    start, end = moved(*(tensor.to("meta") for tensor in example_inputs(50, 2, 12)))
    assert start.device.type == end.device.type == "meta"
    assert start.shape == end.shape == (2, 12)


def test_eight_bits_too(tmp_path: Path, cpu_library: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "bert", num_hidden_layers=1)
    traced, exported = (
        stage(tmp_path, cpu_library, name, model, scheme="int8", compute="bf16") for name in ("torchscript", "export")
    )
    same(outputs(traced), outputs(exported))


def test_the_gate_proves_what_was_exported(tmp_path: Path, cpu_library: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "bert", "token_classification", num_hidden_layers=1)
    exported = stage(tmp_path, cpu_library, "export", model)
    config = settings("export", model)
    verdict = judge_stage(exported, config)
    assert verdict.passed, verdict.line()
    packed = packed_model(load(config), torch.float32, pooling=None)
    packed.encoder.vectors[:64] *= 1.05
    WRITERS["export"](packed, example_inputs(50, 3, 16), exported / FILES["export"])
    assert not judge_stage(exported, config).passed


@pytest.mark.parametrize("name", ["joined, Dense", "prompts left out"])
def test_sentence_models_and_rerankers(tmp_path: Path, cpu_library: Path, name: str) -> None:
    model = make_folder(tmp_path / "model", name)
    traced, exported = (stage(tmp_path, cpu_library, form, model) for form in ("torchscript", "export"))
    texts = ["the parcel has not arrived", "a", "where is it " * 30]
    answers = [Engine.load(folder).columns(texts)["embedding"] for folder in (traced, exported)]
    np.testing.assert_array_equal(*answers)


def test_a_cross_encoder(tmp_path: Path, cpu_library: Path) -> None:
    model = make_cross_encoder(tmp_path / "model")
    traced, exported = (stage(tmp_path, cpu_library, form, model) for form in ("torchscript", "export"))
    same(outputs(traced), outputs(exported))


def test_a_head_keeps_its_gradients(tmp_path: Path) -> None:
    """Explanations differentiate it."""
    torch.manual_seed(3)
    head = SentenceHead(POOLINGS, [Dense(torch.nn.Linear(96, 24), torch.nn.Tanh(), None), Normalize()]).eval()
    inputs = torch.randn(2, 4, 16), torch.ones(2, 4, dtype=torch.int64)
    hidden, mask = torch.randn(3, 9, 16), torch.tensor([[2] + [1] * 8, [1] * 5 + [0] * 4, [1] * 9])
    found = []
    for name, writer in WRITERS.items():
        writer(head, inputs, tmp_path / FILES[name])
        given = hidden.clone().requires_grad_()
        vector = load_file(tmp_path / FILES[name], name, CPU)(given, mask)
        vector.sum().backward()
        found.append((vector.detach(), given.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_nothing_warns_of_torchscript_and_nothing_else_is_silenced(tmp_path: Path) -> None:
    module, inputs = torch.nn.Linear(4, 4), (torch.zeros(2, 4),)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WRITERS["torchscript"](module, inputs, tmp_path / "model.pt")
        load_file(tmp_path / "model.pt", "torchscript", CPU)(*inputs)
        assert [str(warning.message) for warning in caught] == []
        torch.jit.load(tmp_path / "model.pt")
    assert "`torch.jit.load` is" in str(caught[0].message)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "model.pt2"
    WRITERS["export"](torch.nn.Embedding(9, 5), (torch.zeros(2, 4, dtype=torch.int64),), path)
    return path


def _rewritten(source: Path, target: Path, change: dict[str, bytes]) -> Path:
    """A copy with other contents of records, or further ones; names without the zip's own folder."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        root = old.namelist()[0].split("/")[0]
        contents = {name.removeprefix(f"{root}/"): old.read(name) for name in old.namelist()}
        for name, content in {**contents, **change}.items():
            new.writestr(f"{root}/{name}", content)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data/sample_inputs/model.pt": b"\x80\x04N."}, "holds data/sample_inputs/model.pt, which is neither"),
        ({"data/weights/model.pt": b"\x80\x04N."}, "holds data/weights/model.pt, which is neither"),
        ({"data/aotinductor/model/x.so": b"code"}, "holds data/aotinductor/model/x.so, which is neither"),
        ({"data/constants/custom_obj_0": b"code"}, "holds data/constants/custom_obj_0, which is neither"),
        ({"models/model.json": b"{}"}, "does not load in torch"),
        ({"data/weights/weight_0": b"123"}, "does not load in torch"),
    ],
)
def test_what_is_no_graph_and_no_tensor_is_not_loaded(
    tmp_path: Path, table: Path, change: dict[str, bytes], message: str
) -> None:
    path = _rewritten(table, tmp_path / "model.pt2", change)
    with pytest.raises(ArchiveError, match=f"^model.pt2 {message}") as caught:
        load_file(path, "export", CPU)
    assert "\n" not in str(caught.value)


def test_a_pickled_tensor_is_not_loaded(tmp_path: Path, table: Path) -> None:
    with zipfile.ZipFile(table) as packed:
        name = next(name for name in packed.namelist() if name.endswith("model_weights_config.json"))
        text = packed.read(name).replace(b'"use_pickle": false', b'"use_pickle": true')
    path = _rewritten(table, tmp_path / "model.pt2", {"data/weights/model_weights_config.json": text})
    with pytest.raises(ArchiveError, match="holds weight as a pickle"):
        load_file(path, "export", CPU)
