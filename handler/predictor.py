"""The predictor: rows of any server in, replies out. It knows no server.

Stages: decode -> what the engine does (encode, pack and run, finish) -> respond.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handler.archive import ArchiveError, ArchiveFacts
from handler.canary import Canary, canary_request
from handler.config import SetupConfig
from handler.decode import Call, Decoder
from handler.engine import Engine
from handler.errors import RequestError, internal_error
from handler.explain import Explainer
from handler.html import page
from handler.packing import Model
from handler.schemas import Request
from handler.tasks.adapted import unknown
from handler.tokenizer import Tokenizer
from handler.warm_up import warm_up

logger = logging.getLogger(__name__)

SHARE_OF_TIMEOUT = 0.7
"""Of the server's response timeout: after it no pass begins, so that the last one still ends in time."""
CANARY_INTERVAL = 10.0
"""Least seconds between two canary requests that internal errors bring about."""


@dataclass(slots=True)
class Reply:
    """The answer to one row: an HTTP status with its phrase, and a payload that JSON can hold (or a page, or bytes)."""

    status: int
    phrase: str
    payload: Any
    content_type: str = "application/json"


class Predictor:
    """Answers batches of requests with one archive's model.

    ``model`` is any callable of :class:`handler.packing.Model`'s signature, so that tests and other servers can
    bring their own; :meth:`load` makes the archive's.
    """

    def __init__(self, facts: ArchiveFacts, config: SetupConfig, tokenizer: Tokenizer, model: Model) -> None:
        self._around(Engine(facts, config, tokenizer, model))

    def _around(self, engine: Engine) -> None:
        self.engine = engine
        self.facts = engine.facts
        self.config = engine.config
        self.metrics = engine.metrics
        self.model = engine.model
        self.task = engine.task
        self.placement = engine.placement
        self.explainer: Explainer | None = None
        mask = self.task.tokenizer.token(self.facts.mask_id)
        self.canary = Canary(self, canary_request(self.facts.task, mask))
        self._packer = engine.packer
        self._decoder = Decoder(self.task.request, self.config.limits, self.config.allow_overrides)
        self._next_canary = 0.0

    @classmethod
    def load(cls, folder: Path | str, gpu: int | None = None, settings: Mapping[str, Any] | None = None) -> Predictor:
        """From an extracted archive. ``settings``: the content of ``model-config.yaml``, for threads and their cores.

        Raises ArchiveError or ConfigError in one line that says what to do.
        """
        predictor = cls.__new__(cls)
        predictor._around(Engine.load(folder, gpu, settings))
        facts, task, metrics = predictor.facts, predictor.task, predictor.metrics
        predictor.explainer = Explainer(Path(folder), facts, task, predictor.model.device, metrics)
        if predictor.config.warm_up:
            predictor.warm_up()
        return predictor

    def warm_up(self) -> None:
        """Run representative shapes and the canary once. Raises ArchiveError where the model fails on its device or
        the canary gets no answer."""
        longest = self.task.tokenizer.max_length
        try:
            seconds = sum(
                warm_up(model, self.facts.pad_id, longest, self.config.batch_size, self.engine.pass_tokens)
                for model in self.engine.models
            )
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise ArchiveError(f"the model does not run on {self.model.device} ({reason}); build it again") from error
        health = self._check_canary()
        if not health["healthy"]:
            raise ArchiveError(f"the model does not answer a known request ({health['reason']}); build it again")
        logger.info("warmed up in %.1f s; a known request took %.1f ms", seconds, health["milliseconds"])

    def describe(self) -> dict[str, Any]:
        """What is served, how much it has done, and the outcome of a canary request made now."""
        health = self._check_canary()
        said = {"name", "task", "family", "encoder", "model", "compute", "scheme", "parity", "adapters"}
        return {
            **self.facts.model_dump(mode="json", include=said),
            "mode": self.facts.kind,  # what version 0.1.0 called it, for whoever reads it
            "data_type": self.facts.data_type,
            "device": str(self.model.device),
            "threads": self.placement.threads,
            "cores": self.placement.cores,
            "max_length": self.task.tokenizer.max_length,
            "canary": health,
            "totals": dict(self.metrics.totals),
        }

    def _check_canary(self) -> dict[str, Any]:
        health = self.canary.check()
        self.metrics.set("canary", float(health["healthy"]))
        return health

    @property
    def lost(self) -> bool:
        """Whether the device has failed for good, so that only a new process can answer again."""
        return self._packer.lost

    def deadline(self) -> float:
        """After which, on the monotonic clock, a batch that begins now is to begin no pass."""
        return time.monotonic() + SHARE_OF_TIMEOUT * self.config.response_timeout

    def explanation_deadline(self) -> float:
        """When the explanations of a batch that begins now must be done."""
        return time.monotonic() + self.config.explanation_seconds

    def explain(
        self,
        row: Mapping[str, Any],
        content_type: str | None = None,
        *,
        html: bool = False,
        deadline: float | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Explain one row's answers; ``html`` gives a page with the words coloured; ``headers``: the request's.

        ``deadline``: of :meth:`explanation_deadline`, one for all rows of a batch; None: a fresh one.
        """
        deadline = self.explanation_deadline() if deadline is None else deadline
        call = self._decode(row, content_type, headers)
        most = self.config.explanations.max_inputs
        if isinstance(call, Call) and len(call.items) > most:
            call = RequestError("too_many", f"{len(call.items)} inputs, at most {most} are explained in one request")
        if isinstance(call, RequestError):
            return self._reply(call, [])
        reply = self._reply(call, [self._explained(item, deadline) for item in call.items])
        if (html or call.options.get("format") == "html") and reply.status == 200:
            explanations = reply.payload if isinstance(reply.payload, list) else [reply.payload]
            return Reply(200, "OK", page(explanations), "text/html; charset=utf-8")
        return reply

    def _explained(self, item: Request | RequestError, deadline: float) -> Any:
        if isinstance(item, RequestError):
            return item
        try:
            if item.adapter is not None:
                raise unknown([])  # an archive with adapters explains nothing
            if self.explainer is None:
                raise RequestError("unsupported", "this predictor has no explanations")
            return self.explainer.explain(item, deadline)
        except RequestError as error:
            return error
        except Exception as error:
            return internal_error(error)

    def __call__(self, payload: Any) -> Any:
        """Answer one payload (a text, an object, or a list of either). Raises RequestError."""
        reply = self.predict([{"body": payload}])[0]
        if reply.status != 200:
            raise RequestError(**reply.payload["error"])
        return reply.payload

    def predict(
        self,
        rows: Many[Mapping[str, Any]],
        content_types: Many[str | None] | None = None,
        deadline: float | None = None,
        headers: Many[Mapping[str, Any] | None] | None = None,
        *,
        arrays: bool = False,
    ) -> list[Reply]:
        """Answer a server's batch: one reply for each row, whatever the other rows hold.

        ``deadline``: of :meth:`deadline`, taken where the batch began; None: it begins now. ``content_types`` and
        ``headers``: of each row, as :meth:`handler.decode.Decoder.decode` takes them. ``arrays``: see Engine.payloads.
        """
        deadline = self.deadline() if deadline is None else deadline
        types = content_types or [None] * len(rows)
        with self.metrics.stage("decode"):
            stated = zip(rows, types, headers or [None] * len(rows), strict=True)
            calls = [self._decode(*row) for row in stated]
        items = [item for call in calls if isinstance(call, Call) for item in call.items]
        self.metrics.observe("batch_requests", len(rows))
        results = iter(self.engine.results(items, deadline))
        replies = []
        for call in calls:
            own = [] if isinstance(call, RequestError) else [next(results) for _ in call.items]
            replies.append(self._answered(call, own, arrays=arrays))
        if self.metrics.errors("internal") and time.monotonic() > self._next_canary:
            self._next_canary = time.monotonic() + CANARY_INTERVAL
            self._check_canary()
        return replies

    def _decode(
        self, row: Mapping[str, Any], content_type: str | None, headers: Mapping[str, Any] | None
    ) -> Call | RequestError:
        try:
            return self._decoder.decode(row, content_type, headers)
        except RequestError as error:
            return error
        except Exception as error:
            return internal_error(error)

    def _answered(self, call: Call | RequestError, answers: list[Any], *, arrays: bool) -> Reply:
        if isinstance(call, RequestError):
            return self._reply(call, answers)
        if call.options.get("format") == "raw":
            return self._reply(call, answers, raw=True)
        present = self.task.present
        if len(answers) == 1 and not isinstance(answers[0], RequestError):  # nearly every request, and cheaper alone
            return Reply(200, "OK", call.wrap([present(answers[0], call.items[0], arrays=arrays)]))
        shown = [
            answer if isinstance(answer, RequestError) else present(answer, item, arrays=arrays)
            for answer, item in zip(answers, call.items, strict=True)
        ]
        return self._reply(call, shown)

    def _reply(self, call: Call | RequestError, answers: list[Any], *, raw: bool = False) -> Reply:
        """A lone input's error is the reply's; an error within a list stands in its place."""
        errors = [answer for answer in [call, *answers] if isinstance(answer, RequestError)]
        for error in errors:
            self.metrics.add_error(error.type)
        if isinstance(call, RequestError) or (errors and not call.many):
            return Reply(errors[0].status, errors[0].phrase, errors[0].body())
        if raw:
            return raw_vectors(answers)
        payloads = [answer.body() if isinstance(answer, RequestError) else answer for answer in answers]
        return Reply(200, "OK", call.wrap(payloads))


def raw_vectors(answers: list[Any]) -> Reply:
    """The vectors of a request as bytes, row by row, in little-endian order; their type and shape stand in the content
    type. One input's error is the whole reply's, since bytes have no place for it."""
    failed = next((answer for answer in answers if isinstance(answer, RequestError)), None)
    if failed is None and not all(isinstance(answer.get("embedding"), np.ndarray) for answer in answers):
        failed = RequestError("unsupported", "only vectors can be had as raw bytes", "format")
    if failed is None and len({(a["embedding"].dtype, len(a["embedding"])) for a in answers}) > 1:
        failed = RequestError(
            "invalid_request", "raw vectors of one request must have one precision and size", "format"
        )
    if failed is not None:
        return Reply(failed.status, failed.phrase, failed.body())
    vectors = np.stack([answer["embedding"] for answer in answers])
    shape = "x".join(map(str, vectors.shape))
    kind = f"application/octet-stream; dtype={vectors.dtype.name}; shape={shape}"
    return Reply(200, "OK", vectors.astype(vectors.dtype.newbyteorder("<")).tobytes(), kind)
