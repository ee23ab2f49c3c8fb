"""Configs written for repositories' own code are read as transformers' families, and proven as those are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.checkpoint import load
from builder.errors import BuildError
from builder.gate.sentences import prove_sentences
from builder.models import stock_model
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.runtime import load_model
from tests.checkpoints import make_checkpoint
from tests.parity.test_gate import staged


def rewrite(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))
    return folder


def as_new(folder: Path, **changes: Any) -> Path:
    """A GTE checkpoint with the config of Alibaba's own code, whose rotary positions are scaled by NTK's rule."""
    own = {"auto_map": {"AutoModel": "modeling.NewModel"}, "position_embedding_type": "rope", "pack_qkv": True}
    rope = {"rope_theta": 20000, "rope_scaling": {"type": "ntk", "factor": 8.0}, "logn_attention_scale": False}
    kind = json.loads((folder / "config.json").read_text())["architectures"][0].replace("Gte", "New")
    return rewrite(folder, ("rope_parameters",), model_type="new", architectures=[kind], **own, **rope, **changes)


def test_ntk_scaling_is_one_linear_scaling(tmp_path: Path) -> None:
    checkpoint = load(SetupConfig(model_name=str(as_new(make_checkpoint(tmp_path, "gte")))))
    assert (checkpoint.config.model_type, checkpoint.task) == ("gte", "sequence_classification")
    found = checkpoint.load_model().gte.rotary_emb.inv_freq
    exact = (20000.0 * 8) ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32) / 8 ** (2 / 32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_its_weights_are_those_of_the_family(tmp_path: Path) -> None:
    """Names on disk begin with new. in place of gte."""
    import safetensors.torch

    model = make_checkpoint(tmp_path / "gte", "gte")
    inputs = (torch.arange(5, 14)[None], torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.long))
    rope = {"rope_type": "linear", "rope_theta": 160000.0, "factor": 8 ** (2 / 32)}
    expected = stock_model(
        load(SetupConfig(model_name=str(rewrite(model, rope_parameters=rope)))), torch.float32, pooling=None
    )
    file = model / "model.safetensors"
    state = safetensors.torch.load_file(file)
    assert any(".attention.qkv_proj." in name for name in state), "transformers stores other names than it used to"
    renamed = {name.replace("gte.", "new."): tensor for name, tensor in state.items()}
    safetensors.torch.save_file(renamed, file, {"format": "pt"})
    actual = stock_model(load(SetupConfig(model_name=str(as_new(model)))), torch.float32, pooling=None)
    torch.testing.assert_close(actual(*inputs), expected(*inputs))


def test_an_embedding_model_is_compared_with_sentence_transformers(tmp_path: Path) -> None:
    """Which knows no such model type: it is shown the folder as it is read here."""
    model = as_new(make_checkpoint(tmp_path / "gte", "gte", "embedding"))
    stage, config = staged(tmp_path, model, [], kind="ths")
    facts = ArchiveFacts.load(stage / "archive.json")
    assert facts.family == "gte"
    assert prove_sentences(stage, load(config), config, load_model(stage, facts, config)) < 1e-4


def test_nomics_older_config(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "nomic_bert", "embedding")
    stated = json.loads((tmp_path / "config.json").read_text())
    older = {
        "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "vocab_size": stated["vocab_size"],
        "n_embd": 64, "n_head": 2, "n_layer": 2, "n_inner": 112, "n_positions": 140, "type_vocab_size": 2,
        "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "prenorm": False, "activation_function": "swiglu",
        "layer_norm_epsilon": 1e-12, "auto_map": {"AutoModel": "modeling.NomicBertModel"}, "qkv_proj_bias": False,
        "rotary_scaling_factor": None,
    }  # fmt: skip
    before = load(SetupConfig(model_name=str(tmp_path)))
    inputs = (torch.arange(5, 14)[None], torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.long))
    expected = stock_model(before, torch.float32, pooling="mean")(*inputs)
    (tmp_path / "config.json").write_text(json.dumps(older))
    after = load(SetupConfig(model_name=str(tmp_path)))
    assert after.longest == before.longest
    torch.testing.assert_close(stock_model(after, torch.float32, pooling="mean")(*inputs), expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"logn_attention_scale": True}, "logn_attention_scale is True"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling of type 'dynamic'"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type is 'rms_norm'"),
    ],
)
def test_what_is_not_computed_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folder = rewrite(as_new(make_checkpoint(tmp_path, "gte")), **changes)
    with pytest.raises(BuildError, match=rf"^[^\n]*{named}[^\n]*$"):
        load(SetupConfig(model_name=str(folder)))


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size is 3"),
        ("roformer", {"rotary_value": True}, "rotary_value is set"),
        ("albert", {"embedding_size": 64}, "embedding_size 64 is hidden_size"),
        ("mpnet", {"relative_attention_num_buckets": 8}, "relative_attention_num_buckets is 8"),
        ("jina_embeddings_v3", {
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16,
                                "long_factor": [2.0] * 16, "original_max_position_embeddings": 64, "factor": 2.0},
        }, "rotary positions of type 'longrope'"),
        ("t5", {"architectures": ["T5ForSequenceClassification"]}, "no sequence classifier that is an encoder"),
        ("eurobert", {"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
    ],
)  # fmt: skip
def test_what_no_engine_runs_is_named(tmp_path: Path, family: str, changes: dict[str, Any], named: str) -> None:
    task = "token_classification" if family == "t5" else "sequence_classification"
    folder = rewrite(make_checkpoint(tmp_path, family, task), **changes)
    with pytest.raises(BuildError, match=rf"^[^\n]*{named}[^\n]*$"):  # noqa: PT012 - either way of refusing
        from builder.models import output_of

        checkpoint = load(SetupConfig(model_name=str(folder)))
        output_of(checkpoint, None)
        checkpoint.load_model()
