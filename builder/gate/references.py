"""What transformers itself answers to a request, from the checkpoint's folder: the gate's other side, end to end.

Tokenizer and model are read once more by transformers alone, and scores, labels and offsets come from its pipelines,
so that a setting of the folder that the builder overlooks shows. Embeddings and rerank scores are
sentence-transformers' matter (``builder.gate.sentences``). Question answering has no pipeline since transformers
5; :class:`QuestionReference` says the same in its own words.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch

from builder.checkpoint import Checkpoint
from builder.gate.texts import BY_SCRIPT, CLAIMED, LONG, ODD, PAIRS, QUESTIONS, special_texts
from handler.characters import trimmed, whole

RELATIVE, ABSOLUTE = 5e-3, 2e-6
"""How far a score may be off: much more than rounding in fp32, much less than a token or a label read otherwise."""

Payload = dict[str, Any]


def close(ours: float, theirs: float) -> bool:
    """Whether two scores are the same but for rounding."""
    return abs(ours - theirs) <= RELATIVE * max(abs(ours), abs(theirs)) + ABSOLUTE


class Reference:
    """One task's requests, and whether an answer of the handler's is what transformers says.

    ``longest``: the limit in tokens. The model computes in fp32.
    """

    pipeline: ClassVar[str] = ""

    def __init__(self, checkpoint: Checkpoint, longest: int) -> None:
        self.checkpoint = checkpoint
        self.longest = longest
        # Set up by sentence-transformers where it has a say: a cross-encoder of several labels is a classifier here.
        self.tokenizer = copy.deepcopy(checkpoint.sentences.tokenizer) or checkpoint.new_tokenizer()
        self.tokenizer.model_max_length = longest
        self.model: Any = checkpoint.load_model_alone()

    def texts(self) -> Iterator[tuple[str, str]]:
        """Named texts of every kind."""
        for script, texts in BY_SCRIPT.items():
            yield from ((f"a text in {script}", text) for text in texts)
        yield from ((f"the text {text[:24]!r}", text) for text in ODD)
        yield from ((f"the text {text!r}", text) for text in special_texts(self.tokenizer))
        yield "a long text", LONG

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """Named request bodies."""
        raise NotImplementedError

    def problem(self, payload: Payload, answer: Any) -> str | None:
        """None where the handler's ``answer`` is the reference's too, else what differs, in a few words."""
        raise NotImplementedError

    def outputs(self, encoded: Any) -> tuple[torch.Tensor, ...]:
        """The model's outputs."""
        with torch.inference_mode():
            return self.model(**encoded).to_tuple()

    def ask(self, payload: Any, **options: Any) -> Any:
        """The task's pipeline's answer."""
        import transformers

        if not hasattr(self, "_pipeline"):
            make: Any = transformers.pipeline
            self._pipeline = make(self.pipeline, model=self.model, tokenizer=self.tokenizer, device="cpu")
        with torch.inference_mode():
            return self._pipeline(payload, **options)


class ClassificationReference(Reference):
    """transformers' text-classification pipeline."""

    pipeline = "text-classification"

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """See Reference.payloads: all labels of each text, and of pairs."""
        options = {"top_k": self.model.config.num_labels, "truncation": "truncate"}
        for name, text in self.texts():
            yield name, {"text": text, **options}
        for text, pair in PAIRS:
            yield f"the pair {text[:24]!r}", {"text": text, "text_pair": pair, **options}

    def problem(self, payload: Payload, answer: Any) -> str | None:
        """See Reference.problem."""
        texts = {key: payload[key] for key in ("text", "text_pair") if key in payload}
        theirs = self.ask(texts, top_k=None, truncation=True, max_length=self.longest)
        theirs = theirs[0] if theirs and isinstance(theirs[0], list) else theirs
        ours = answer.get("labels") or [answer]
        return same_scores(
            [(row["label"], row["score"]) for row in ours], [(row["label"], row["score"]) for row in theirs]
        )


class ZeroShotReference(Reference):
    """transformers' zero-shot-classification pipeline."""

    pipeline = "zero-shot-classification"

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """See Reference.payloads: labels of several words and scripts, one label, other claims."""
        for place, (name, text) in enumerate(self.texts()):
            yield name, {"text": text, **CLAIMED[place % len(CLAIMED)], "truncation": "truncate"}

    def problem(self, payload: Payload, answer: Any) -> str | None:
        """See Reference.problem."""
        options = {key: value for key, value in payload.items() if key not in ("text", "truncation")}
        # transformers cuts at the tokenizer's own limit here, which is set to that of the archive.
        theirs = self.ask(payload["text"], **options)
        ours = zip(answer["labels"], answer["scores"], strict=True)
        return same_scores(list(ours), list(zip(theirs["labels"], theirs["scores"], strict=True)))


class TokenReference(Reference):
    """transformers' token-classification pipeline."""

    pipeline = "token-classification"

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """See Reference.payloads: each token by itself, and tokens joined."""
        for name, text in self.texts():
            for how in ("none", "simple"):
                yield name, {"text": text, "aggregation": how, "truncation": "truncate"}

    def problem(self, payload: Payload, answer: Any) -> str | None:
        """See Reference.problem."""
        key = "entity" if payload["aggregation"] == "none" else "entity_group"
        theirs = self.ask(payload["text"], aggregation_strategy=payload["aggregation"])
        ours = answer["entities"]
        if len(ours) != len(theirs):
            return f"{len(ours)} entities, transformers finds {len(theirs)}"
        for mine, other in zip(ours, theirs, strict=True):
            span = other["start"], other["end"]
            if key == "entity_group":  # an entity of the handler's never ends between a letter and its marks
                span = whole(payload["text"], *span)
            if (mine["start"], mine["end"]) != span:
                return f"an entity at {mine['start']}-{mine['end']}, transformers' is at {span[0]}-{span[1]}"
            if problem := same_scores([(mine["label"], mine["score"])], [(other[key], float(other["score"]))]):
                return problem
        return None


class FillMaskReference(Reference):
    """transformers' fill-mask pipeline."""

    pipeline = "fill-mask"

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """See Reference.payloads: a mask behind each text, before it, and alone."""
        mask = self.tokenizer.mask_token
        yield "a mask alone", {"text": mask}
        for name, text in self.texts():
            if mask in text or name == "a long text":
                continue
            behind = f"{text} {mask}."
            if len(self.tokenizer(behind).input_ids) <= self.longest:
                yield name, {"text": behind}
            else:  # the mask would be cut off
                yield name, {"text": f"{mask} {text}", "truncation": "truncate"}
        yield "a long text", {"text": f"{mask} {LONG}", "truncation": "truncate"}

    def problem(self, payload: Payload, answer: Any) -> str | None:
        """See Reference.problem."""
        limits = {"truncation": True, "max_length": self.longest}
        theirs = self.ask(payload["text"], top_k=5, tokenizer_kwargs=limits)
        (ours,) = answer["masks"]
        return same_scores(
            [(row["token_id"], row["score"]) for row in ours], [(row["token"], row["score"]) for row in theirs]
        )


class QuestionReference(Reference):
    """Softmax over a window's context and its first token, start times end, as transformers' pipeline had it until
    version 4: the probability of no answer, and of the best span."""

    LONGEST_ANSWER = 30

    def payloads(self) -> Iterator[tuple[str, Payload]]:
        """See Reference.payloads: contexts that fit the model whole."""
        contexts = [(f"the question {question!r}", question, context) for question, context in QUESTIONS]
        contexts += [(name, "What is it?", text) for name, text in self.texts() if name != "a long text"]
        for name, question, context in contexts:
            if len(self.tokenizer(question, context).input_ids) <= self.longest:
                # Never withheld, so that there is a span to compare.
                yield name, {"question": question, "context": context, "null_threshold": 1e9, "n_best": 1}

    def problem(self, payload: Payload, answer: Any) -> str | None:
        """See Reference.problem: the answer's probability is that of its spans together."""
        encoded = self.tokenizer(payload["question"], payload["context"], return_tensors="pt")
        inside = np.flatnonzero([part == 1 for part in encoded.sequence_ids(0)])
        start, end = (output[0].double() for output in self.outputs(encoded)[:2])
        kept = np.concatenate(([0], inside))
        first, last = (logits[torch.from_numpy(kept)].softmax(-1).numpy() for logits in (start, end))
        nothing = float(first[0] * last[0])
        said = answer.get("no_answer_score")
        if said is not None and not close(said, nothing):
            return f"no answer at {said:.4f}, transformers says {nothing:.4f}"
        offsets = [self._characters(encoded, int(token), payload["context"]) for token in inside]
        spans = np.triu(np.outer(first[1:], last[1:]))
        spans -= np.triu(spans, self.LONGEST_ANSWER)
        every = spans.copy()
        spans *= _with_text(offsets)
        if not spans.any():
            return None if not answer["answer"] else f"the answer {answer['answer']!r} where there is nothing to answer"
        places = occurrences(payload["context"], answer["answer"])
        within = np.zeros_like(spans)
        touched = np.zeros_like(spans)
        edges = np.array([self._edges(encoded, int(token), payload["context"]) for token in inside])
        for begin, stop in places:
            mine = [begin <= a and b <= stop for a, b in offsets]
            within = np.maximum(within, spans * np.outer(mine, mine))
            word = (edges[:, 0] < stop) & (begin < edges[:, 1])
            first = word | ((begin <= edges[:, 2]) & (edges[:, 2] < stop))
            last = word | ((begin < edges[:, 3]) & (edges[:, 3] <= stop))
            touched = np.maximum(touched, every * np.outer(first, last))
        best, most = float(within.max()), float(touched.sum())
        score = answer["score"]
        if float(spans.max()) > score * (1 + RELATIVE) + ABSOLUTE or best > score * (1 + RELATIVE) + ABSOLUTE:
            return f"the answer {answer['answer']!r} at {score:.4f}, transformers has one at {float(spans.max()):.4f}"
        if score > most * (1 + RELATIVE) + ABSOLUTE:
            return f"the answer {answer['answer']!r} at {score:.4f}, transformers gives it {most:.4f}"
        return None

    @staticmethod
    def _edges(encoded: Any, token: int, context: str) -> tuple[int, int, int, int]:
        """First and last character of a token's word, where a span that begins with the token has its first letter, and
        where one that ends with it has its last. An answer ends with letters, and with words where there are spaces
        between them; a space may be a token. So spans of several first and last tokens read the same."""
        span = encoded.token_to_chars(0, token)
        if span is None:
            return 0, 0, 0, 0
        number = encoded.token_to_word(0, token)
        word = span if number is None else encoded.word_to_chars(0, number, 1)
        begin = len(context) - len(context[span.start :].lstrip())
        return word.start, word.end, begin, len(context[: span.end].rstrip())

    @staticmethod
    def _characters(encoded: Any, token: int, context: str) -> tuple[int, int]:
        """A token's characters less the white space around them, which an answer does not begin or end with."""
        span = encoded.token_to_chars(0, token)
        return (0, 0) if span is None else trimmed(context, span.start, span.end)


def _with_text(offsets: list[tuple[int, int]]) -> np.ndarray:
    """[S, S] of 0 and 1: whether the tokens from one to another hold more than white space."""
    filled = np.cumsum([0, *(start < end for start, end in offsets)])
    return (filled[None, 1:] > filled[:-1, None]).astype(float)


def occurrences(context: str, answer: str) -> list[tuple[int, int]]:
    """Where a text stands in another, whatever the case: spans that read the same count together."""
    size = len(answer)
    # Slice by slice: lower() of a whole text may be longer than it.
    starts = [place for place in range(len(context)) if context[place : place + size].lower() == answer.lower()]
    return [(start, start + size) for start in starts if size]


def same_scores(ours: list[tuple[Any, float]], theirs: list[tuple[Any, float]]) -> str | None:
    """Rows of what and how much: the same scores in order, and of the same things where the scores tell them apart."""
    if len(ours) != len(theirs):
        return f"{len(ours)} scores, transformers gives {len(theirs)}"
    ours, theirs = (sorted(rows, key=lambda row: -row[1]) for rows in (ours, theirs))
    for place, ((what, score), (other, expected)) in enumerate(zip(ours, theirs, strict=True)):
        if not close(score, expected):
            return f"{what} at {score:.4f}, transformers says {other} at {expected:.4f}"
        neighbours = [row[1] for row in (*theirs[max(0, place - 1) : place], *theirs[place + 1 : place + 2])]
        last = place == len(theirs) - 1 and len(theirs) > 1
        if what != other and not last and not any(close(expected, value) for value in neighbours):
            return f"{what} at {score:.4f}, transformers says {other}"
    return None


REFERENCES: dict[str, type[Reference]] = {
    "sequence_classification": ClassificationReference,
    "question_answering": QuestionReference,
    "token_classification": TokenReference,
    "fill_mask": FillMaskReference,
    "zero_shot_classification": ZeroShotReference,
}
