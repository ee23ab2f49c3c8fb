"""The gate's end-to-end proof of embeddings and rerank scores: texts through the archive's tokenizer, model and task.

The reference is sentence-transformers on the checkpoint's folder, in fp32. As in ``builder.gate.parity`` the
archive's root-mean-square error may be at most twice the one that sentence-transformers makes at the same type; a
scheme that it has not is judged by the cosine of the worst vector, or the distance of the worst score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder.checkpoint import Checkpoint
from builder.errors import BuildError
from builder.families import max_positions
from builder.gate import outputs
from builder.gate.answers import open_predictor
from builder.gate.verdict import ALLOWED_RATIO
from builder.models import DTYPES
from builder.quantisation.schemes import RECIPES
from builder.sentence_transformers.model import open_cross_encoder, open_embedding
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.packing import Model
from handler.predictor import Predictor
from handler.tokenizer import Tokenizer

FLOORS = {"fp32": 2.0**-13, "fp16": 2.0**-9, "bf16": 2.0**-6}
"""Relative errors that pass in any case. In fp32 what a deep encoder loses to another order of sums; in 16 bits four
roundings, as few numbers, scores above all, may err by little in the library by chance."""

_SENTENCES = (
    "Where is my parcel?", "ÅNGSTRÖM, Straße, CAFÉ, naïve cafés", "The invoice of 3 March (no. 4711) was paid twice.",
    "包裹还没有到。", "لم يصل الطرد بعد", "Посылка ещё не пришла!", "どこに荷物がありますか", "🙂 fine, thanks 👍",
    "x", "  spaces \t and\nlines  ", "e-mail@example.org https://example.org/a_b", "[CLS] a [SEP] b <s> c </s>",
)  # fmt: skip
_LONG = "The depot by the harbour counts crates of apples, boots and lamps before each winter storm arrives. "


def prove_sentences(
    stage: Path, checkpoint: Checkpoint, config: SetupConfig, model: Model, extra: Sequence[str] = ()
) -> float:
    """Compare a staged archive, whose loaded ``model`` is given, with sentence-transformers on the folder.

    ``extra``: texts beside the gate's own. Returns the relative root-mean-square error; raises BuildError with the
    worst text's place when it is too large.
    """
    predictor = open_predictor(stage, config, model)
    cases = _cases(predictor.facts, [*_SENTENCES, _long(predictor.task.tokenizer), *extra])
    run = {"embedding": _embeddings, "rerank": _scores}.get(checkpoint.task, _several)
    ours = [_answer(predictor, checkpoint, text, options) for text, options in cases]
    expected = run(checkpoint, config, cases, torch.float32)
    if RECIPES[config.scheme].judged_by == "cosine":
        return _judge_distance(checkpoint, ours, expected, cases, RECIPES[config.scheme].sentence_distance)
    allowed = FLOORS[config.compute]
    if DTYPES[config.compute] is not torch.float32:
        plain = run(checkpoint, config, cases, DTYPES[config.compute])
        allowed = max(allowed, ALLOWED_RATIO * _error(plain, expected))
    error = _error(ours, expected)
    if not error <= allowed:
        raise BuildError(f"parity FAILED: {_worst(ours, expected, cases)}, error {error:.2e}, allowed {allowed:.2e}")
    return error


def _long(tokenizer: Tokenizer) -> str:
    """A text that is cut, ending unlike it begins."""
    words = _LONG * (tokenizer.max_length // 10 + 1)
    return f"Storms. {words} Quarterly tax law."


def _cases(facts: ArchiveFacts, texts: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Every text as it is, and some with each way to choose a prompt."""
    choices: list[dict[str, Any]] = [{"prompt_name": name} for name in facts.prompts]
    choices += [{"prompt": ""}]
    if facts.task == "rerank":
        choices += [{"raw_scores": True}]
    else:
        choices += [{"input_type": "query"}, {"input_type": "document"}]
    if facts.task == "multi_vector_embedding":
        choices += [{"query": outputs.QUERY}, {"query": outputs.QUERY, "prompt": "Which: "}]
    short = texts[0], texts[2]
    given = [
        (text, {"prompt": "Represent this text: "}) for text in texts if text in short or text.startswith("Storms.")
    ]
    if facts.task == "multi_vector_embedding":
        given += [("x", {"input_type": "query"})]  # as short as a query that is filled up can be
    return [(text, {}) for text in texts] + given + [(text, choice) for choice in choices for text in short]


def _answer(predictor: Predictor, checkpoint: Checkpoint, text: str, options: dict[str, Any]) -> np.ndarray:
    if checkpoint.task == "embedding":
        request: dict[str, Any] = {"text": text, **options}
    elif checkpoint.task == "rerank":
        request = {"query": outputs.QUERY, "texts": [text], **options}
    else:
        request = outputs.request_of(checkpoint, (text, options))
    reply = predictor.predict([{"body": request}], deadline=float("inf"))[0]
    if reply.status != 200:
        raise BuildError(f"parity FAILED: the archive does not answer ({reply.payload['error']['message']})")
    return outputs.numbers(reply.payload, checkpoint.config.vocab_size)


def _embeddings(checkpoint: Checkpoint, config: SetupConfig, cases: Any, dtype: torch.dtype) -> list[np.ndarray]:
    """What SentenceTransformer makes of the texts, one at a time, set as the setup config asks."""
    model = _opened(open_embedding, checkpoint, dtype)
    _set(model, config, max_positions(checkpoint.config))
    if config.normalize is False and type(model[-1]).__name__ == "Normalize":
        del model[-1]
    cut = {"truncate_dim": config.dimensions, "normalize_embeddings": bool(config.normalize)}
    made = []
    for text, options in cases:
        how = {"query": model.encode_query, "document": model.encode_document}.get(options.get("input_type"))
        named = {key: value for key, value in options.items() if key != "input_type"}
        vector = (how or model.encode)(text, show_progress_bar=False, convert_to_tensor=True, **cut, **named)
        made.append(vector.double().numpy())
    return made


def _scores(checkpoint: Checkpoint, config: SetupConfig, cases: Any, dtype: torch.dtype) -> list[np.ndarray]:
    """What CrossEncoder makes of the texts, each as an answer to the query."""
    model = _opened(open_cross_encoder, checkpoint, dtype)
    _set(model, config, max_positions(checkpoint.config))
    made = []
    for text, options in cases:
        named = {key: value for key, value in options.items() if key != "raw_scores"}
        several = checkpoint.config.num_labels > 1
        activation = torch.nn.Identity() if several or options.get("raw_scores") else None
        score = model.predict(
            [(outputs.QUERY, text)], activation_fn=activation, show_progress_bar=False, convert_to_tensor=True, **named
        )
        if several:  # the probability of the last label is this product's own
            score = score[:, -1] if options.get("raw_scores") else score.softmax(-1)[:, -1]
        made.append(score.double().numpy())
    return made


def _several(checkpoint: Checkpoint, config: SetupConfig, cases: Any, dtype: torch.dtype) -> list[np.ndarray]:
    """What a model of other outputs makes of the texts, one at a time."""

    def opened(open_: Any) -> Any:
        model = _opened(open_, checkpoint, dtype)
        _set(model, config, max_positions(checkpoint.config))
        if config.normalize is False and type(model[-1]).__name__ == "Normalize":
            del model[-1]
        return model

    return outputs.expected(checkpoint, config, cases, opened)


def _opened(open_: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """sentence-transformers' model; with the weights that the builder reads where the library itself reads none."""
    model = open_(checkpoint.as_source, dtype)
    if checkpoint.rewritten:
        model[0].model = checkpoint.load_model(dtype)
    return model


def _set(model: Any, config: SetupConfig, longest: int) -> None:
    """``longest``: of the encoder, beyond which sentence-transformers fails where a folder lets it."""
    model.max_seq_length = min(config.max_length or model.max_seq_length or longest, longest)
    model.prompts.update(config.prompts or {})
    model.default_prompt_name = config.default_prompt_name or model.default_prompt_name


def _error(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Relative root-mean-square error over all numbers."""
    if any(a.shape != b.shape for a, b in zip(actual, expected, strict=True)):
        raise BuildError(f"parity FAILED: {actual[0].size} numbers, sentence-transformers gives {expected[0].size}")
    difference = sum(float(np.square(a - b).sum()) for a, b in zip(actual, expected, strict=True))
    return float(np.sqrt(difference / max(sum(float(np.square(b).sum()) for b in expected), 1e-30)))


def _worst(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], cases: Sequence[Any]) -> str:
    distances = [_error([a], [b]) for a, b in zip(actual, expected, strict=True)]
    text, options = cases[int(np.argmax(distances))]
    chosen = f" with {options}" if options else ""
    return f"the archive and sentence-transformers differ most on {text[:40]!r}{chosen}"


def _judge_distance(
    checkpoint: Checkpoint, ours: list[np.ndarray], expected: list[np.ndarray], cases: Any, allowed: float
) -> float:
    error = _error(ours, expected)
    if checkpoint.task != "rerank":
        cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(ours, expected, strict=True)]
        distance = float(1 - min(cosines))
    else:
        scale = max(float(np.abs(b).max()) for b in expected)
        distance = max(float(np.abs(a - b).max()) for a, b in zip(ours, expected, strict=True)) / scale
    if not distance <= allowed:
        raise BuildError(f"parity FAILED: {_worst(ours, expected, cases)}, distance {distance:.3f}, allowed {allowed}")
    return error
