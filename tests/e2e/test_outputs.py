"""Zero-shot classification and embeddings of several outputs over HTTP, beside the libraries on the same folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import transformers
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder

from deploy.server import Server
from handler.client import Client, ServerError
from tests.checkpoints import TEXTS
from tests.e2e.conftest import registered
from tests.output_folders import DIMENSIONS, make_colbert, make_m3, make_nli, make_splade

LONGEST = 8192
TASKS = {"trio": "hybrid_embedding", "chooser": "zero_shot_classification", "late": None, "splade": None}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("outputs")
    return {
        "trio": make_m3(root / "trio", max_position_embeddings=LONGEST + 2),
        "chooser": make_nli(root / "chooser", "roberta"),
        "late": make_colbert(root / "late", document_length=30),
        "splade": make_splade(root / "splade"),
    }


@pytest.fixture(scope="module")
def client(server: Server, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of the running server, with this module's archives registered in it."""
    configs = {name: {"model_name": str(folder), "task": TASKS[name]} for name, folder in folders.items()}
    with registered(server, configs, tmp_path_factory.mktemp("configs")) as made:
        yield made


def test_zero_shot(client: Client, folders: dict[str, Path]) -> None:
    reference = transformers.pipeline("zero-shot-classification", str(folders["chooser"]), device="cpu")
    labels = ["delivery", "a lighthouse", "praise"]
    for options in ({}, {"multi_label": True}, {"hypothesis_template": "It is about {}."}):
        theirs = reference(TEXTS[0], candidate_labels=labels, **options)
        ours = client.predict("chooser", {"text": TEXTS[0], "candidate_labels": labels}, **options)
        assert ours["labels"] == theirs["labels"]
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-4)
    answers = client.predict("chooser", [{"text": text, "candidate_labels": "delivery, praise"} for text in TEXTS])
    assert [sum(answer["scores"]) for answer in answers] == pytest.approx([1] * len(TEXTS), abs=1e-5)
    with pytest.raises(ServerError) as caught:
        client.predict("chooser", TEXTS[0])
    assert (caught.value.status, caught.value.field) == (422, "candidate_labels")


def test_three_outputs(client: Client, folders: dict[str, Path]) -> None:
    reference = SentenceTransformer(str(folders["trio"]), device="cpu")
    answers = client.predict("trio", TEXTS, sparse_keys="tokens")
    dense = np.array([answer["embedding"] for answer in answers])
    assert dense == pytest.approx(reference.encode(TEXTS), abs=1e-4)
    for text, answer in zip(TEXTS, answers, strict=True):
        tokens = reference.tokenizer.tokenize(text)
        assert set(answer["sparse_embedding"]) <= set(tokens)
        vectors = np.array(answer["token_embeddings"])
        assert vectors.shape == (len(tokens) + 1, DIMENSIONS)  # of </s> too, not of <s>
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
    (some,) = client.predict("trio", TEXTS[:1], outputs=["sparse"])
    assert set(some) == {"sparse_embedding"}
    assert all(key.isdecimal() for key in some["sparse_embedding"])


def test_a_text_of_8192_tokens(client: Client, folders: dict[str, Path]) -> None:
    reference = SentenceTransformer(str(folders["trio"]), device="cpu")
    reference.max_seq_length = LONGEST
    text = " ".join(TEXTS * 200)
    assert len(reference.tokenizer.tokenize(text)) > LONGEST
    answer = client.predict("trio", text)
    assert answer["dropped_tokens"] > 0
    assert len(answer["token_embeddings"]) == LONGEST - 1
    assert answer["embedding"] == pytest.approx(reference.encode(text).tolist(), abs=1e-3)


def test_sparse_and_multi_vector(client: Client, folders: dict[str, Path]) -> None:
    sparse = SparseEncoder(str(folders["splade"]), device="cpu")
    late = MultiVectorEncoder(str(folders["late"]), device="cpu")
    for text in TEXTS:
        weights = client.predict("splade", text, top_k=5)["sparse_embedding"]
        assert weights == pytest.approx(dict(sparse.decode(sparse.encode(text), top_k=5)), abs=1e-4)
        vectors = client.predict("late", text, input_type="document")["token_embeddings"]
        assert np.array(vectors) == pytest.approx(late.encode_document(text).numpy(), abs=1e-4)
    results = client.predict("late", {"query": "where is it", "texts": TEXTS, "sort": False})["results"]
    expected = late.similarity([late.encode_query("where is it")], late.encode_document(TEXTS))[0]
    assert [row["score"] for row in results] == pytest.approx(expected.tolist(), abs=1e-3)
