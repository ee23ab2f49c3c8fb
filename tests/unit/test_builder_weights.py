"""The forms in which people keep weights: each is read whole, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from builder.checkpoint import load
from builder.errors import BuildError
from handler.config import SetupConfig
from tests.adapters import make_adapter
from tests.checkpoints import make_checkpoint

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sound") / "checkpoint", "bert")


def state_of(folder: Path, **keys: object) -> State:
    checkpoint = load(SetupConfig.model_validate({"model_name": str(folder), **keys}))
    return checkpoint.load_model().state_dict()


def same(folder: Path, other: Path, **keys: object) -> bool:
    ours, theirs = state_of(folder, **keys), state_of(other, **keys)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _old(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _halves(state: State) -> tuple[State, State]:
    names = sorted(state)
    return tuple({name: state[name] for name in part} for part in (names[::2], names[1::2]))  # type: ignore[return-value]


def _index(folder: Path, base: str, suffix: str, halves: tuple[State, State]) -> None:
    places = {name: f"{base}-0000{i + 1}-of-00002.{suffix}" for i, half in enumerate(halves) for name in half}
    (folder / f"{base}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _sharded_bin(folder: Path, state: State) -> None:
    for number, half in enumerate(_halves(state), 1):
        torch.save(half, folder / f"pytorch_model-0000{number}-of-00002.bin")
    _index(folder, "pytorch_model", "bin", _halves(state))


def _sharded(folder: Path, state: State) -> None:
    for number, half in enumerate(_halves(state), 1):
        save_file(half, folder / f"model-0000{number}-of-00002.safetensors", {"format": "pt"})


def _sharded_with_index(folder: Path, state: State) -> None:
    _sharded(folder, state)
    _index(folder, "model", "safetensors", _halves(state))


def _safe(folder: Path, state: State) -> None:
    save_file(state, folder / "model.safetensors", {"format": "pt"})


FORMS: dict[str, Callable[[Path, State], object]] = {
    "DataParallel": lambda f, s: _safe(f, {f"module.{k}": v for k, v in s.items()}),
    "torch.compile": lambda f, s: _safe(f, {f"_orig_mod.{k}": v for k, v in s.items()}),
    "DataParallel within torch.compile": lambda f, s: _safe(f, {f"_orig_mod.module.{k}": v for k, v in s.items()}),
    "Lightning": lambda f, s: torch.save(
        {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in s.items()}}, f / "pytorch_model.bin"
    ),
    "gamma and beta": lambda f, s: torch.save({_old(k): v for k, v in s.items()}, f / "pytorch_model.bin"),
    "gamma and beta within DataParallel": lambda f, s: _safe(f, {f"module.{_old(k)}": v for k, v in s.items()}),
    "the format before torch 1.6": lambda f, s: torch.save(
        s, f / "pytorch_model.bin", _use_new_zipfile_serialization=False
    ),
    "position ids": lambda f, s: _safe(f, {**s, "bert.embeddings.position_ids": torch.arange(140)[None]}),
    "sharded bin": _sharded_bin,
    "sharded safetensors": _sharded_with_index,
    "sharded safetensors without an index": _sharded,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_weights_is_read_whole(tmp_path: Path, sound: Path, form: str) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    FORMS[form](folder, state)
    assert same(folder, sound)


def test_an_encoder_without_prefix_serves_as_one_with(tmp_path: Path, sound: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    AutoModel.from_pretrained(sound).save_pretrained(folder)
    assert same(folder, sound, task="embedding")


def test_every_shard_counts_for_the_digest(tmp_path: Path, sound: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    digests = set()
    for change in (0.0, 1.0, 2.0):
        name = sorted(state)[int(change)]
        _sharded(folder, {**state, name: state[name] + change})
        digests.add(load(SetupConfig(model_name=str(folder))).sha256)
    assert len(digests) == 3


def test_a_shard_too_few(tmp_path: Path, sound: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    _sharded(folder, state)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BuildError, match="1 of 2 files of weights are there"):
        state_of(folder)


def test_weights_of_other_heads_are_told(tmp_path: Path, sound: Path) -> None:
    checkpoint = load(SetupConfig(model_name=str(sound), task="embedding"))
    assert checkpoint.unused == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    assert load(SetupConfig(model_name=str(sound))).unused == []


def test_an_adapter_that_points_at_its_base_is_merged(tmp_path: Path, sound: Path) -> None:
    expected = make_adapter(sound, tmp_path / "adapter").state_dict()
    checkpoint = load(SetupConfig(model_name=str(tmp_path / "adapter")))
    assert (checkpoint.task, checkpoint.config.num_labels) == ("sequence_classification", 4)
    assert checkpoint.tokenizer_folder == sound.resolve()
    merged = checkpoint.load_model().state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name])
    base = state_of(sound)["bert.encoder.layer.0.attention.self.query.weight"]
    assert not torch.allclose(merged["bert.encoder.layer.0.attention.self.query.weight"], base)
    assert checkpoint.sha256 != load(SetupConfig(model_name=str(sound))).sha256


def test_an_adapter_beside_its_base_is_merged(tmp_path: Path, sound: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    expected = make_adapter(sound, folder, names="somebody/elsewhere").state_dict()
    merged = state_of(folder)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_config.json without adapter_model"),
        (lambda f: _renamed(f / "adapter_model.safetensors"), "the adapter cannot be merged"),
        (lambda f: _named(f, "somebody/elsewhere"), "an adapter without its base model 'somebody/elsewhere'"),
        (lambda f: _named(f, None), "an adapter without its base model; put it"),
    ],
    ids=["no weights", "other weights", "base elsewhere", "base not named"],
)
def test_an_adapter_that_cannot_be_merged(
    tmp_path: Path, sound: Path, break_it: Callable[[Path], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def unreachable(*arguments: object, **keys: object) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    make_adapter(sound, tmp_path / "adapter")
    break_it(tmp_path / "adapter")
    with pytest.raises(BuildError, match=message):
        state_of(tmp_path / "adapter")


def test_an_adapter_is_chosen_by_its_folder_or_its_name(tmp_path: Path, sound: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    expected = make_adapter(sound, folder / "tickets", names="somebody/elsewhere").state_dict()
    unmerged = load(SetupConfig(model_name=str(folder)))
    assert unmerged.adapter is None
    for named in ("tickets", str(folder / "tickets")):
        checkpoint = load(SetupConfig(model_name=str(folder), adapter=named))
        assert checkpoint.config.num_labels == 4
        assert checkpoint.sha256 != unmerged.sha256
        merged = checkpoint.load_model().state_dict()
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize(
    ("prepare", "named", "message"),
    [
        (lambda f: None, "nowhere", "adapter 'nowhere' is no folder with adapter_config.json, here or within"),
        (
            lambda f: (f / "tickets" / "adapter_model.safetensors").unlink(),
            "tickets",
            "adapter tickets: adapter_config",
        ),
        (lambda f: shutil.copytree(f / "tickets", f, dirs_exist_ok=True), "tickets", "checkpoint is an adapter itself"),
        (
            lambda f: (f / "tickets" / "more.json").symlink_to("/etc/hostname"),
            "tickets",
            "a link out of the checkpoint",
        ),
    ],
    ids=["no such folder", "no weights", "an adapter upon another", "a link"],
)
def test_a_chosen_adapter_that_cannot_be(
    tmp_path: Path, sound: Path, prepare: Callable[[Path], object], named: str, message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound, folder)
    make_adapter(sound, folder / "tickets", names="somebody/elsewhere")
    prepare(folder)
    with pytest.raises(BuildError, match=rf"^[^\n]*{message}[^\n]*$"):
        load(SetupConfig(model_name=str(folder), adapter=named))


def test_an_adapter_of_another_family_leaves_rotary_frequencies_as_they_are(tmp_path: Path) -> None:
    """Jina v3 has an adapter for each of its tasks."""
    model = make_checkpoint(tmp_path / "jina", "jina_embeddings_v3", "embedding")
    base = AutoModel.from_pretrained(model)
    config = LoraConfig(r=2, target_modules=["q_proj", "fc1", "word_embeddings"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(model / "retrieval_query")
    expected = adapted.merge_and_unload().state_dict()
    checkpoint = load(SetupConfig(model_name=str(model), adapter="retrieval_query"))
    for name, tensor in checkpoint.load_model().state_dict().items():
        if name in expected:
            torch.testing.assert_close(tensor, expected[name])
    coarse = checkpoint.load_model(torch.bfloat16)
    assert coarse.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    assert coarse.rotary_emb.inv_freq.dtype == torch.float32


def test_a_kind_of_adapter_that_has_no_merged_form(tmp_path: Path, sound: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(sound)
    get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)).save_pretrained(
        tmp_path / "adapter"
    )
    with pytest.raises(BuildError, match="the adapter cannot be merged"):
        state_of(tmp_path / "adapter")


def _renamed(path: Path) -> None:
    save_file({f"{name}.other": tensor for name, tensor in load_file(path).items()}, path)


def _named(folder: Path, name: str | None) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))
