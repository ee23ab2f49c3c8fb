"""Why an answer is what it is: integrated gradients on the word embeddings.

Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, by Captum. The fused encoder has no
gradients, so the archive carries the checkpoint itself (setup config: ``captum_explanation``); transformers loads it
when the first explanation is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from handler.archive import ArchiveError, ArchiveFacts
from handler.errors import RequestError
from handler.metrics import Metrics
from handler.original import load_original
from handler.packing import collate, out_of_memory
from handler.schemas import ClassificationRequest, QuestionRequest, Request, TokenRequest
from handler.tasks.base import Task, softmax
from handler.tasks.question_answering import Window
from handler.tokenizer import Sequence, Tokenized

TRIAL = 0.1
"""The part of the points after which the time of all of them is foretold."""
Score: TypeAlias = Callable[[tuple[torch.Tensor, ...]], torch.Tensor]
"""The twin's outputs -> the logit to explain, [B]."""
EXPLAINED = ("sequence_classification", "token_classification", "question_answering")
POSITIONS_FOLLOW_PADDING = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "mpnet")
"""Families whose positions count the tokens that are no pads, from the pad's id + 1."""


@dataclass(slots=True)
class Attribution:
    """What is explained, each token's share of it, and how far the shares' sum is from the whole."""

    target: str
    shares: np.ndarray
    delta: float


class Clock:
    """Ends an explanation that takes too long, as soon as that can be foretold.

    ``points``: rows to be differentiated in all; ``seconds``: what an explanation may take that has a batch's time to
    itself; ``deadline``: on the monotonic clock, when the batch's time is up.
    """

    def __init__(self, points: int, seconds: float, deadline: float) -> None:
        self._points = points
        self._seconds = seconds
        self._deadline = deadline
        self._begun: float | None = None
        self._done = 0

    def check(self) -> None:
        """Before each pass. Raises RequestError: too_large where even a batch's whole time would not suffice,
        overloaded where what others have left of it does not."""
        now = end = time.monotonic()
        if self._begun is not None and self._done:
            needed = (now - self._begun) * self._points / self._done
            told = self._done >= TRIAL * self._points
            if needed > self._seconds and (told or now > self._deadline):
                message = f"explaining this takes about {needed:.0f} seconds, more than the server allows; send less"
                raise RequestError("too_large", message)
            end = max(now, self._begun + needed) if told else now
        if end > self._deadline:
            raise RequestError("overloaded", "no time left for this explanation now; ask for it later or alone")

    def begin(self, points: int) -> None:
        """A pass begins, of so many points or of none that counts."""
        self.check()
        if points and self._begun is None:
            self._begun = time.monotonic()
        self._done += points


class Explainer:
    """Explains answers of one archive. ``folder`` is the extracted archive."""

    def __init__(
        self, folder: Path, facts: ArchiveFacts, task: Task[Any], device: torch.device, metrics: Metrics
    ) -> None:
        self._folder = folder
        self._facts = facts
        self._task = task
        self._device = device
        self._metrics = metrics
        self._limits = task.config.explanations
        self._module: Any = None
        self._method: Any = None

    def explain(self, request: Request, deadline: float) -> dict[str, Any]:
        """The explanation of a request's answer, or of the label it names as ``target``.

        ``deadline``: on the monotonic clock. Raises RequestError where the archive or the task has no explanations,
        where the text is too long for one, and where time or memory do not suffice.
        """
        if self._facts.task not in EXPLAINED:
            raise RequestError("unsupported", f"{self._facts.task} has no explanations")
        self._load()
        tokenized = self._tokenized(request)
        self._metrics.add("truncations", 1 if tokenized.dropped else 0)
        try:
            answer = self._answer(request, tokenized.sequences, deadline)
        except Exception as error:
            if not out_of_memory(error):
                raise
            answer = None
        if answer is None:
            self._out_of_memory()
            raise _too_little_memory()
        return {**answer, **({"dropped_tokens": tokenized.dropped} if tokenized.dropped else {})}

    def _answer(self, request: Request, sequences: list[Sequence], deadline: float) -> dict[str, Any]:
        if isinstance(request, QuestionRequest):
            return self._question(request, sequences, self._clock(2 * self._limits.steps, deadline))
        clock = self._clock(self._limits.steps, deadline)
        if isinstance(request, TokenRequest):
            sequence, attribution = self._token(sequences, request.target, clock)
            texts: tuple[str, ...] = (request.text,)
        else:
            assert isinstance(request, ClassificationRequest)
            sequence = sequences[0]
            attribution = self._label(sequence, request.target, clock)
            texts = (request.text,) if request.text_pair is None else (request.text, request.text_pair)
        return {**_described(attribution), "tokens": _tokens(sequence, attribution, texts)}

    def _clock(self, points: int, deadline: float) -> Clock:
        return Clock(points, self._task.config.explanation_seconds, deadline)

    def _label(self, sequence: Sequence, target: int | str | None, clock: Clock) -> Attribution:
        logits = self._logits(sequence, clock)[0]
        label = int(logits.argmax()) if target is None else self._label_index(target, len(logits))
        return self._attribute(sequence, self._facts.label(label), lambda outputs: outputs[0][:, label], clock)

    def _token(self, sequences: list[Sequence], target: int | str | None, clock: Clock) -> tuple[Sequence, Attribution]:
        """The token that is surest of the label; without a target, of any label that is not O."""
        best = None
        for sequence in sequences:
            probabilities = softmax(self._logits(sequence, clock)[0])
            assert sequence.encoding is not None
            probabilities[np.array(sequence.encoding.special_tokens_mask, dtype=bool)] = 0
            labels = range(probabilities.shape[1])
            if target is not None:
                labels = range(start := self._label_index(target, len(labels)), start + 1)
            named = [label for label in labels if target is not None or self._facts.label(label) != "O"]
            if not named:
                raise RequestError("unsupported", "the model has no label but O")
            places = probabilities[:, named]
            place, column = divmod(int(places.argmax()), len(named))
            if best is None or places[place, column] > best[0]:
                best = (places[place, column], sequence, place, named[column])
        assert best is not None
        _, sequence, place, label = best
        name = self._facts.label(label)
        return sequence, self._attribute(sequence, name, lambda outputs: outputs[0][:, place, label], clock)

    def _question(self, request: QuestionRequest, sequences: list[Sequence], clock: Clock) -> dict[str, Any]:
        """Start and end of the best answer, in the window it stands in."""
        best = None
        for sequence in sequences:
            start, end = self._logits(sequence, clock)[:2]
            window = Window(sequence, start, end)
            longest = request.max_answer_length or self._task.config.max_answer_length
            for score, first, last in window.token_spans(1, longest):
                if best is None or score > best[0]:
                    best = (score, first, last, sequence)
        if best is None:
            raise RequestError("empty", "the context holds no tokens", "context")
        _, first, last, sequence = best
        texts = (request.question, request.context)
        sides = {
            "start": self._attribute(sequence, "start", lambda outputs: outputs[0][:, first], clock),
            "end": self._attribute(sequence, "end", lambda outputs: outputs[1][:, last], clock),
        }
        return {side: {**_described(a), "tokens": _tokens(sequence, a, texts)} for side, a in sides.items()}

    def _tokenized(self, request: Request) -> Tokenized:
        """As a prediction would read the text. Classification's mean over windows is no one window's, so not those."""
        task = self._task
        policy = task.truncation(request)
        result = task.tokenizer.encode([task.input(request)], [policy], [task.stride(request)], offsets=True)[0]
        if isinstance(result, RequestError):
            raise result
        count = len(result.sequences)
        if count > 1 and isinstance(request, ClassificationRequest):
            message = "a label that several windows vote for is not explained; set truncation to truncate"
            raise RequestError("unsupported", message, "truncation")
        if count > self._limits.max_windows:
            message = f"{count} windows, at most {self._limits.max_windows} are explained; send a shorter text"
            raise RequestError("too_many", message)
        return result

    def _logits(self, sequence: Sequence, clock: Clock) -> list[np.ndarray]:
        clock.check()
        with torch.no_grad():  # not inference_mode: a twin loaded within it could never have gradients
            return [output[0].float().cpu().numpy() for output in self._run(*self._tensors(sequence))]

    def _attribute(self, sequence: Sequence, target: str, score: Score, clock: Clock) -> Attribution:
        """Passes of as many points as the budget holds; out of memory, of half as many and so on."""
        rows = max(1, self._limits.batch_tokens // len(sequence.ids))
        while (found := self._integrated(sequence, score, rows, clock)) is None:
            self._out_of_memory()
            if rows == 1:
                raise _too_little_memory()
            rows //= 2
        return Attribution(target, *found)

    def _integrated(self, sequence: Sequence, score: Score, rows: int, clock: Clock) -> tuple[np.ndarray, float] | None:
        """Each token's share [S] and the convergence delta; None where memory ran out."""
        ids, *others = self._tensors(sequence)
        assert sequence.encoding is not None
        special = torch.tensor([sequence.encoding.special_tokens_mask], dtype=torch.bool, device=self._device)
        baseline = torch.where(special, ids, torch.full_like(ids, self._facts.pad_id))

        def forward(*inputs: torch.Tensor) -> torch.Tensor:
            clock.begin(len(inputs[0]) if torch.is_grad_enabled() else 0)
            return score(self._run(*inputs))

        method = self._method(forward, self.module.get_input_embeddings())
        try:
            shares, delta = method.attribute(
                ids, baseline, additional_forward_args=tuple(others), n_steps=self._limits.steps,
                internal_batch_size=rows, return_convergence_delta=True,
            )  # fmt: skip
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None
        return shares.sum(-1)[0].detach().cpu().numpy(), float(delta.item())

    def _out_of_memory(self) -> None:
        """Called outside the handler of the error, so that its frames no longer hold the failed pass's tensors."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._metrics.add("out_of_memory", 1)

    @property
    def module(self) -> Any:
        """The differentiable twin, in fp32. Raises RequestError where the archive or the environment has none."""
        self._load()
        return self._module

    def _load(self) -> None:
        if self._module is not None:
            return
        try:
            from captum.attr import LayerIntegratedGradients

            module = load_original(self._folder / "checkpoint", self._facts).float().to(self._device)
        except (ArchiveError, ImportError):
            message = "no explanations here; build the archive with captum_explanation, install transformers and captum"
            raise RequestError("unsupported", message) from None
        self._method = LayerIntegratedGradients
        # The gradients wanted are the embeddings' alone; without the weights' far less of a pass has to be kept.
        self._module = module.requires_grad_(False)

    def _run(
        self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        extra = {"token_type_ids": segments} if self._facts.uses_segments else {}
        extra |= {} if positions is None else {"position_ids": positions}
        outputs = self.module(input_ids=ids, attention_mask=mask, **extra)
        return (outputs.start_logits, outputs.end_logits) if "start_logits" in outputs else (outputs.logits,)

    def _tensors(self, sequence: Sequence) -> tuple[torch.Tensor, ...]:
        """ids, segments, mask and, where they depend on the ids, positions: int64 [1, S].

        The baseline's pads would change positions that are read off them; the text's own are given instead, or the
        path from the baseline would not begin where its scores do.
        """
        pad = self._facts.pad_id
        tensors = [torch.from_numpy(array).to(self._device) for array in collate([sequence], pad)]
        if self._facts.family in POSITIONS_FOLLOW_PADDING:
            counted = tensors[0] != pad
            tensors.append(counted.cumsum(1) * counted + pad)
        return tuple(tensors)

    def _label_index(self, target: int | str, count: int) -> int:
        labels = [self._facts.label(label) for label in range(count)]
        if isinstance(target, str):
            if target in labels:
                return labels.index(target)
        elif 0 <= target < count:
            return target
        raise RequestError("invalid_request", "target is none of the model's labels", "target")


def _too_little_memory() -> RequestError:
    return RequestError("overloaded", "not enough memory for this explanation now; try again or send less")


def _described(attribution: Attribution) -> dict[str, Any]:
    return {"target": attribution.target, "delta": attribution.delta}


def _tokens(sequence: Sequence, attribution: Attribution, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The texts' tokens with their shares; ``text`` counts the texts of a pair, offsets are within that text."""
    assert sequence.encoding is not None
    assert sequence.offsets is not None
    rows = []
    places = zip(sequence.encoding.sequence_ids, sequence.offsets, attribution.shares, strict=True)
    for part, (start, end), share in places:
        if part is not None:
            token = texts[part][start:end]
            rows.append({"text": part, "token": token, "start": start, "end": end, "attribution": float(share)})
    return rows
