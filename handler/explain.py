"""Why an answer is what it is: integrated gradients on the word embeddings.

Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, by Captum. The fused encoder has no
gradients, so the archive carries the checkpoint itself (setup config: ``captum_explanation``); transformers loads it
when the first explanation is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from handler.archive import ArchiveError, ArchiveFacts
from handler.errors import RequestError
from handler.original import load_original
from handler.packing import collate
from handler.schemas import ClassificationRequest, QuestionRequest, Request, TokenRequest
from handler.tasks.base import Task, softmax
from handler.tasks.question_answering import Window
from handler.tokenizer import Sequence

STEPS = 50
"""Points of the integral; the convergence delta says how well they did."""
Score: TypeAlias = Callable[[tuple[torch.Tensor, ...]], torch.Tensor]
"""The twin's outputs -> the logit to explain, [B]."""
EXPLAINED = ("sequence_classification", "token_classification", "question_answering")


@dataclass(slots=True)
class Attribution:
    """What is explained, each token's share of it, and how far the shares' sum is from the whole."""

    target: str
    shares: np.ndarray
    delta: float


class Explainer:
    """Explains answers of one archive. ``folder`` is the extracted archive."""

    def __init__(self, folder: Path, facts: ArchiveFacts, task: Task[Any], device: torch.device) -> None:
        self._folder = folder
        self._facts = facts
        self._task = task
        self._device = device
        self._module: Any = None

    def explain(self, request: Request) -> dict[str, Any]:
        """The explanation of a request's answer, or of the label it names as ``target``.

        Raises RequestError where the archive or the task has no explanations.
        """
        if self._facts.task not in EXPLAINED:
            raise RequestError("unsupported", f"{self._facts.task} has no explanations")
        if isinstance(request, QuestionRequest):
            return self._question(request)
        assert isinstance(request, (ClassificationRequest, TokenRequest))
        sequence = self._sequence(request)
        if isinstance(request, TokenRequest):
            attribution = self._token(sequence, request.target)
        else:
            attribution = self._label(sequence, request.target)
        return {**_described(attribution), "tokens": _tokens(sequence, attribution, self._texts(request))}

    def _label(self, sequence: Sequence, target: int | str | None) -> Attribution:
        logits = self._logits(sequence)[0]
        label = int(logits.argmax()) if target is None else self._label_index(target, len(logits))
        return self._attribute(sequence, self._name(label), lambda outputs: outputs[0][:, label])

    def _token(self, sequence: Sequence, target: int | str | None) -> Attribution:
        """The token that is surest of the label; without a target, of any label that is not O."""
        probabilities = softmax(self._logits(sequence)[0])
        assert sequence.encoding is not None
        probabilities[np.array(sequence.encoding.special_tokens_mask, dtype=bool)] = 0
        if target is not None:
            label = self._label_index(target, probabilities.shape[1])
        else:
            outside = self._facts.labels.index("O") if "O" in self._facts.labels else None
            named = np.delete(np.arange(probabilities.shape[1]), [] if outside is None else [outside])
            label = int(named[probabilities[:, named].max(axis=0).argmax()])
        place = int(probabilities[:, label].argmax())
        return self._attribute(sequence, self._name(label), lambda outputs: outputs[0][:, place, label])

    def _question(self, request: QuestionRequest) -> dict[str, Any]:
        """Start and end of the best answer, in the window it stands in."""
        best = None
        for sequence in self._windows(request):
            assert sequence.encoding is not None
            start, end = self._logits(sequence)[:2]
            window = Window(sequence.encoding, start, end)
            longest = request.max_answer_length or self._task.config.max_answer_length
            for score, first, last in window.token_spans(1, longest):
                if best is None or score > best[0]:
                    best = (score, first, last, sequence)
        if best is None:
            raise RequestError("empty", "the context holds no tokens", "context")
        _, first, last, sequence = best
        texts = (request.question, request.context)
        sides = {
            "start": self._attribute(sequence, "start", lambda outputs: outputs[0][:, first]),
            "end": self._attribute(sequence, "end", lambda outputs: outputs[1][:, last]),
        }
        return {side: {**_described(a), "tokens": _tokens(sequence, a, texts)} for side, a in sides.items()}

    def _sequence(self, request: Request) -> Sequence:
        result = self._task.tokenizer.encode([self._task.input(request)], ["truncate"], [0], offsets=True)[0]
        if isinstance(result, RequestError):
            raise result
        return result.sequences[0]

    def _windows(self, request: QuestionRequest) -> list[Sequence]:
        job = self._task.encode([request])[0]
        if isinstance(job, RequestError):
            raise job
        return job.sequences

    def _logits(self, sequence: Sequence) -> list[np.ndarray]:
        with torch.no_grad():  # not inference_mode: a twin loaded within it could never have gradients
            return [output[0].float().cpu().numpy() for output in self._run(*self._tensors(sequence))]

    def _attribute(self, sequence: Sequence, target: str, score: Score) -> Attribution:
        from captum.attr import LayerIntegratedGradients

        ids, segments, mask = self._tensors(sequence)
        assert sequence.encoding is not None
        special = torch.tensor([sequence.encoding.special_tokens_mask], dtype=torch.bool, device=self._device)
        baseline = torch.where(special, ids, torch.full_like(ids, self._facts.pad_id))
        method = LayerIntegratedGradients(lambda i, s, m: score(self._run(i, s, m)), self.module.get_input_embeddings())
        shares, delta = method.attribute(
            ids, baseline, additional_forward_args=(segments, mask), n_steps=STEPS,
            internal_batch_size=max(1, self._task.max_pass_tokens() // ids.size(1)), return_convergence_delta=True,
        )  # fmt: skip
        return Attribution(target, shares.sum(-1)[0].detach().cpu().numpy(), float(delta.item()))

    @property
    def module(self) -> Any:
        """The differentiable twin, in fp32. Raises RequestError where the archive has none."""
        if self._module is None:
            try:
                self._module = load_original(self._folder / "checkpoint", self._facts).float().to(self._device)
            except ArchiveError:
                message = "this archive has no explanations; build it with captum_explanation and install transformers"
                raise RequestError("unsupported", message) from None
        return self._module

    def _run(self, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        extra = {"token_type_ids": segments} if self._facts.uses_segments else {}
        outputs = self.module(input_ids=ids, attention_mask=mask, **extra)
        return (outputs.start_logits, outputs.end_logits) if "start_logits" in outputs else (outputs.logits,)

    def _tensors(self, sequence: Sequence) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(array).to(self._device) for array in collate([sequence], self._facts.pad_id))

    def _label_index(self, target: int | str, labels: int) -> int:
        if isinstance(target, str):
            if target in self._facts.labels:
                return self._facts.labels.index(target)
        elif 0 <= target < labels:
            return target
        raise RequestError("invalid_request", "target is none of the model's labels", "target")

    def _name(self, label: int) -> str:
        return self._facts.labels[label] if label < len(self._facts.labels) else f"LABEL_{label}"

    @staticmethod
    def _texts(request: ClassificationRequest | TokenRequest) -> tuple[str, ...]:
        pair = getattr(request, "text_pair", None)
        return (request.text,) if pair is None else (request.text, pair)


def _described(attribution: Attribution) -> dict[str, Any]:
    return {"target": attribution.target, "delta": attribution.delta}


def _tokens(sequence: Sequence, attribution: Attribution, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The texts' tokens with their shares; ``text`` counts the texts of a pair, offsets are within that text."""
    assert sequence.encoding is not None
    rows = []
    places = zip(sequence.encoding.sequence_ids, sequence.encoding.offsets, attribution.shares, strict=True)
    for part, (start, end), share in places:
        if part is not None:
            token = texts[part][start:end]
            rows.append({"text": part, "token": token, "start": start, "end": end, "attribution": float(share)})
    return rows
