"""Writes what transformers' pipelines and sentence-transformers answer.

``python -m tests.parity.make_expected [TASK ...]``; with ``OMP_NUM_THREADS=1`` where other programs use the cores.

The question-answering pipeline was dropped with transformers 5, so that task needs an environment of its own with
``transformers<5``; the versions used are written into the files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import transformers
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from transformers import AutoTokenizer, pipeline

from tests.parity import pipeline_cases as cases


def sequence_classification(folder: Path) -> list[Any]:
    """All labels and their scores, of texts cut at the sample's 128 tokens."""
    run = pipeline("text-classification", str(folder), top_k=None)
    answers = [run([text], truncation=True, max_length=128)[0] for text in cases.texts()]
    return [[[label["label"], label["score"]] for label in answer] for answer in answers]


def token_classification(folder: Path) -> dict[str, list[Any]]:
    """Entities by strategy; windows where a strategy allows them. Words only on plain texts; see the test."""
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=cases.MAX_LENGTH["token_classification"])
    expected = {}
    for strategy in cases.STRATEGIES:
        stride = None if strategy == "none" else cases.TOKEN_STRIDE
        run = pipeline(
            "token-classification", str(folder), tokenizer=tokenizer, aggregation_strategy=strategy, stride=stride
        )
        expected[strategy] = [[_entity(entity) for entity in run(text)] for text in cases.tagged_texts(strategy)]
    return expected


def _entity(entity: dict[str, Any]) -> list[Any]:
    label = entity.get("entity_group") or entity["entity"]
    return [label, float(entity["score"]), int(entity["start"]), int(entity["end"])]


def fill_mask(folder: Path) -> list[Any]:
    """The five best tokens."""
    run = pipeline("fill-mask", str(folder))
    return [[[c["token"], c["token_str"], c["score"]] for c in run(text)] for text in cases.masked_texts()]


def embedding(folder: Path) -> list[Any]:
    """The mean over a text's tokens: its length and first 16 dimensions."""
    run = pipeline("feature-extraction", str(folder))
    expected = []
    for text in cases.texts():
        hidden = run(text, tokenize_kwargs={"truncation": True, "max_length": cases.MAX_LENGTH["embedding"]})
        vector = np.mean(hidden[0], axis=0)
        expected.append([float(np.linalg.norm(vector)), *map(float, vector[:16])])
    return expected


def question_answering(folder: Path) -> list[Any]:
    """The two best answers, "no answer" among them."""
    run = pipeline("question-answering", str(folder))
    settings = {
        "max_seq_len": 384,
        "doc_stride": 128,
        "max_answer_len": 30,
        "handle_impossible_answer": True,
        "top_k": 2,
    }
    answers = [run(**question, **settings) for question in cases.questions()]
    return [[[a["answer"], a["score"], int(a["start"]), int(a["end"])] for a in answer] for answer in answers]


def zero_shot_classification(folder: Path) -> list[Any]:
    """The labels in their order, and their scores."""
    run = pipeline("zero-shot-classification", str(folder))
    answers = [run(claim.pop("text"), **claim) for claim in cases.claims()]
    return [[answer["labels"], answer["scores"]] for answer in answers]


def sparse_embedding(folder: Path) -> list[Any]:
    """How many weights there are, their sum, and the ten heaviest with their tokens."""
    model = SparseEncoder(str(folder), device="cpu")
    expected = []
    for text in cases.texts():
        weights = model.encode(text, show_progress_bar=False)
        decoded = model.decode(weights)
        expected.append([len(decoded), sum(weight for _, weight in decoded), [list(pair) for pair in decoded[:10]]])
    return expected


def multi_vector_embedding(folder: Path) -> list[Any]:
    """Of each text as a query and as a document: how many vectors, and the sum of them; and its MaxSim to a query."""
    model = MultiVectorEncoder(str(folder), device="cpu")
    query = model.encode_query(cases.QUERY)
    expected = []
    for text in cases.texts():
        both = [encode(text, show_progress_bar=False) for encode in (model.encode_query, model.encode_document)]
        sums = [[len(vectors), *map(float, vectors.sum(0)[:8])] for vectors in both]
        expected.append([*sums, float(model.similarity([query], [both[1]]))])
    return expected


TASKS = {
    f.__name__: f
    for f in (
        sequence_classification, token_classification, fill_mask, embedding, question_answering,
        zero_shot_classification, sparse_embedding, multi_vector_embedding,
    )
}  # fmt: skip


def main(names: list[str]) -> None:
    """Write the files of the named tasks (default: all that this transformers has)."""
    cases.EXPECTED.mkdir(exist_ok=True)
    for name in names or [task for task in TASKS if task != "question_answering"]:
        with tempfile.TemporaryDirectory() as folder:
            answers = TASKS[name](cases.checkpoint(name, Path(folder) / "checkpoint"))
        made_by = {"transformers": transformers.__version__, "sentence-transformers": sentence_transformers.__version__}
        text = json.dumps({**made_by, "answers": _rounded(answers)}, ensure_ascii=False)
        (cases.EXPECTED / f"{name}.json").write_text(text.replace("]], [[", "]],\n[[") + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(element) for element in value]
    return {key: _rounded(element) for key, element in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main(sys.argv[1:])
