"""What folders of NLI, SPLADE, ColBERT and BGE-M3 models say, and what of it is refused: in one line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.checkpoint import load
from builder.errors import BuildError
from builder.models import packed_model
from builder.sentence_transformers.outputs import Outputs, skipped
from builder.sentence_transformers.token_head import EXPANSION, SpladePool, attended
from handler.config import SetupConfig
from tests.output_folders import make_colbert, make_m3, make_nli, make_pylate, make_splade, make_stanford
from tests.sentence_folders import edit, make_folder, write


def loaded(folder: Path, **settings: Any) -> Any:
    return load(SetupConfig.model_validate({"model_name": str(folder), **settings}))


def outputs(folder: Path, **settings: Any) -> Outputs:
    found = loaded(folder, **settings).sentences.outputs
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (make_splade, "sparse_embedding"),
        (make_colbert, "multi_vector_embedding"),
        (make_pylate, "multi_vector_embedding"),
        (make_stanford, "multi_vector_embedding"),
        (make_m3, "embedding"),
        (make_nli, "sequence_classification"),
    ],
)
def test_the_task_is_read_off_the_folder(tmp_path: Path, make: Callable[[Path], Path], task: str) -> None:
    assert loaded(make(tmp_path / "model")).task == task


def test_an_nli_classifier_is_told_of(tmp_path: Path) -> None:
    folder = make_nli(tmp_path / "model")
    assert "--task zero_shot_classification" in (loaded(folder).note or "")
    assert loaded(folder, task="sequence_classification").note is None
    assert loaded(folder, task="zero_shot_classification").entailment == 2


@pytest.mark.parametrize(
    ("labels", "row"),
    [(("entailment", "neutral", "contradiction"), 0), (("not_entailment", "ENTAILS"), 1), (("no", "Entailment"), 1)],
)
def test_entailment_is_found_by_its_name(tmp_path: Path, labels: tuple[str, ...], row: int) -> None:
    folder = make_nli(tmp_path / "model", labels=labels)
    assert loaded(folder, task="zero_shot_classification").entailment == row


@pytest.mark.parametrize("labels", [("yes", "no"), ("entailment",), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_without_entailment_nothing_is_guessed(tmp_path: Path, labels: tuple[str, ...]) -> None:
    folder = make_nli(tmp_path / "model", labels=labels)
    with pytest.raises(BuildError, match=r'model: .*a label called entailment.*list the names.*"labels"'):
        assert loaded(folder, task="zero_shot_classification").entailment
    if len(labels) > 1:
        named = ["entailment", *map(str, range(len(labels) - 1))]
        assert loaded(folder, task="zero_shot_classification", labels=named).entailment == 0


def test_a_plain_masked_model_is_pooled_by_the_maximum(tmp_path: Path) -> None:
    folder = make_splade(tmp_path / "model")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    assert loaded(folder).task == "fill_mask"
    found = outputs(folder, task="sparse_embedding")
    assert found.sparse is not None
    assert (found.sparse.kind, found.sparse.sums, found.sparse.most) == ("vocabulary", False, None)


def test_a_sparse_encoders_settings(tmp_path: Path) -> None:
    folder = make_splade(tmp_path / "model", pooling="sum", activation="log1p_relu", max_active_dims=7)
    found = outputs(folder)
    assert found.sparse is not None
    assert (found.sparse.sums, found.sparse.most) == (True, 7)
    assert found.splade is not None
    assert found.splade.twice


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_pooling_is_the_librarys(pooling: Any, activation: Any) -> None:
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    logits = torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(7) < torch.tensor([[7], [3], [1]])).long()
    features = {"token_embeddings": logits.clone(), "attention_mask": mask}
    expected = SpladePooling(pooling, activation).eval()(features)["sentence_embedding"]
    noisy = logits.masked_fill(mask[..., None] == 0, 1e4)
    torch.testing.assert_close(SpladePool(pooling, activation)(noisy, mask), expected)


def test_a_multi_vector_encoders_settings(tmp_path: Path) -> None:
    expansion = {"strategy": "min", "length": 12, "attend": True, "token": "[UNK]"}
    folder = make_colbert(tmp_path / "model", query_expansion=expansion, query_length=20, document_length=30)
    edit(folder / "2_MultiVectorMask" / "config.json", skiplist_tasks=["query", "document"])
    edit(folder / "config_sentence_transformers.json", similarity_fn_name="meanmaxsim")
    checkpoint = loaded(folder)
    facts = checkpoint.sentences.outputs.multi_vector
    assert (facts.query_length, facts.document_length, facts.mean) == (20, 30, True)
    assert facts.skip == sorted(checkpoint.tokenizer.convert_tokens_to_ids(["!", "?"]))
    assert facts.skip_in == ["query", "document"]
    assert facts.expansion.model_dump() == {"token": checkpoint.tokenizer.unk_token_id, "length": 12, "attend": True}
    edit(folder / "sentence_bert_config.json", query_expansion={"strategy": "fixed", "length": 12}, query_length=None)
    facts = outputs(folder).multi_vector
    assert facts is not None
    assert facts.query_length == 12
    assert facts.expansion is not None
    assert not facts.expansion.attend


def test_a_saved_by_pylate_or_stanford(tmp_path: Path) -> None:
    for folder, lengths in ((make_pylate(tmp_path / "pylate"), (16, 40)), (make_stanford(tmp_path / "old"), (20, 40))):
        checkpoint = loaded(folder)
        facts = checkpoint.sentences.outputs.multi_vector
        assert (facts.query_length, facts.document_length) == lengths
        assert set(checkpoint.sentences.prompts) >= {"query", "document"}
        assert [type(layer).__name__ for layer in checkpoint.sentences.outputs.token_layers] == ["Dense", "Normalize"]


def test_bge_m3_in_its_three_ways(tmp_path: Path) -> None:
    folder = make_m3(tmp_path / "model")
    hybrid = outputs(folder, task="hybrid_embedding")
    assert hybrid.names == ("dense", "sparse", "multi_vector")
    assert hybrid.multi_vector is not None
    assert (hybrid.multi_vector.skip_first, hybrid.multi_vector.mean) == (True, True)
    assert outputs(folder, task="sparse_embedding").names == ("sparse",)
    assert outputs(folder, task="multi_vector_embedding").names == ("multi_vector",)
    checkpoint = loaded(folder, task="sparse_embedding")
    assert checkpoint.bare
    assert skipped(checkpoint.tokenizer) == [0, 1, 2, 3]  # <s>, <pad>, </s>, <unk>; not <mask>
    (folder / "colbert_linear.pt").unlink()
    assert outputs(folder, task="hybrid_embedding").names == ("dense", "sparse")


def test_unseen_tokens_are_refused_by_the_fused_encoder(tmp_path: Path) -> None:
    folder = make_colbert(tmp_path / "model", query_expansion={"strategy": "fixed", "length": 12})
    with pytest.raises(BuildError, match="tokens that no token attends to.*--encoder stock"):
        packed_model(loaded(folder), torch.float32, pooling=None)
    assert attended(torch.tensor([[1, 2, EXPANSION, 0]])).tolist() == [[1, 1, 0, 0]]


def _m3_with(name: str, content: Any) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        make_m3(root)
        torch.save(content, root / name)

    return spoil


def _rows(make: Callable[[Path], Path], *kinds: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        make(root)
        rows = json.loads((root / "modules.json").read_text())
        extra = [{"idx": 9, "name": "9", "path": "9", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
        write(root / "modules.json", [*rows, *extra])
        for _ in kinds:
            write(root / "9" / "config.json", {})

    return spoil


def _kept(root: Path) -> None:
    make_colbert(root)
    edit(root / "2_MultiVectorMask" / "config.json", keep_only_token_ids=[5])


def _cut(root: Path) -> None:
    path = make_m3(root) / "colbert_linear.pt"
    path.write_bytes(path.read_bytes()[:600])


REFUSED: dict[str, tuple[str | None, Callable[[Path], Any], str]] = {
    "CSR": (None, _rows(make_splade, "SparseAutoEncoder"), "modules Transformer, SpladePooling, SparseAutoEncoder"),
    "token pooling": (None, _rows(make_colbert, "HierarchicalTokenPooling"), "HierarchicalTokenPooling is not supp"),
    "chosen tokens": (None, _kept, "keeps chosen tokens only"),
    "a plain encoder": (
        "multi_vector_embedding", lambda r: make_folder(r, "usual"), "no layers for token vectors; it is no multi",
    ),
    "no further layers": ("hybrid_embedding", lambda r: make_folder(r, "usual"), "needs sparse_linear.pt or colbert"),
    "another width": (
        "sparse_embedding", _m3_with("sparse_linear.pt", {"weight": torch.zeros(1, 9), "bias": torch.zeros(1)}),
        r"weight in sparse_linear.pt is \[1, 9\], it must be \[1, 64\]",
    ),
    "two weights a token": (
        "hybrid_embedding", _m3_with("sparse_linear.pt", {"weight": torch.zeros(2, 64), "bias": torch.zeros(2)}),
        r"is \[2, 64\], it must be \[1, 64\]",
    ),
    "no weight": ("hybrid_embedding", _m3_with("colbert_linear.pt", {"w": torch.zeros(1)}), "holds no weight"),
    "no number": (
        "hybrid_embedding", _m3_with("colbert_linear.pt", {"weight": torch.full((8, 64), torch.nan)}), "NaN or inf",
    ),
    "code": ("hybrid_embedding", _m3_with("colbert_linear.pt", torch.nn.Linear(64, 8)), "more than tensors"),
    "damaged": ("hybrid_embedding", _cut, "colbert_linear.pt is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, name: str) -> None:
    task, spoil, message = REFUSED[name]
    spoil(tmp_path / "model")
    with pytest.raises(BuildError, match=message) as error:
        assert loaded(tmp_path / "model", task=task).sentences
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model: ")
