"""The TorchServe adapter: the only file that knows TorchServe."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

from handler.archive import ArchiveError
from handler.config import ConfigError
from handler.decode import BODY_KEYS, instance
from handler.errors import RequestError, internal_error
from handler.metrics import Sample, Sink
from handler.predictor import Predictor, Reply

LAST_ANSWERS = 1.0
"""Seconds that a worker lives on after its device has failed."""

logger = logging.getLogger(__name__)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class EncoderService:
    """TorchServe finds this class, calls ``initialize`` once and ``handle`` for each batch."""

    def __init__(self, predictor: Predictor | None = None) -> None:
        self._predictor = predictor

    def initialize(self, context: Any) -> None:
        """Load the archive that TorchServe has extracted."""
        properties = context.system_properties
        try:
            settings = context.model_yaml_config
            self._predictor = Predictor.load(properties["model_dir"], properties.get("gpu_id"), settings)
        except (ArchiveError, ConfigError) as error:
            logger.error("%s cannot be served: %s", context.model_name, error)
            raise RuntimeError(str(error)) from None

    def handle(self, rows: list[Any] | None, context: Any) -> list[Any]:
        """Answer a batch: one reply, with its own status, for each row.

        Behind one of TorchServe's KServe envelopes the rows are one request's inputs, and plain objects go back.
        """
        assert self._predictor is not None
        predictor = self._predictor
        if enveloped(rows, context):
            replies = predictor.predict([{"body": instance(row)} for row in rows or [None]])
            answers = unwrapped(replies, context)
        else:
            replies = route(predictor, rows or [], context)
            limit = predictor.config.limits.max_answer_bytes
            answers = [respond(reply, context, index, limit) for index, reply in enumerate(replies)]
        predictor.metrics.flush(metrics_sink(context))
        if predictor.lost:
            end_worker()
        return answers


def end_worker() -> None:
    """Soon, so that this batch's answers still go out. Where a worker ends, the server starts another."""
    logger.error("the device has failed; this worker ends, so that the server starts another")
    timer = threading.Timer(LAST_ANSWERS, lambda: os._exit(1))
    timer.daemon = True
    timer.start()


def content_type(context: Any, index: int) -> str | None:
    """Of the body, which TorchServe files under the parameter's name."""
    headers = context.get_all_request_header(index)
    for key in BODY_KEYS:
        if isinstance(headers.get(key), dict):
            return headers[key].get("content-type")
    return None


def route(predictor: Predictor, rows: list[Mapping[str, Any]], context: Any) -> list[Reply]:
    """Explanations and descriptions one by one, all predictions of the batch together."""
    types = [content_type(context, index) for index in range(len(rows))]
    headers = [context.get_all_request_header(index) for index in range(len(rows))]
    explained_by, answered_by = predictor.explanation_deadline(), predictor.deadline()
    plain = []
    replies: dict[int, Reply] = {}
    for index, row in enumerate(rows):
        if context.get_request_header(index, "describe") == "True":
            replies[index] = Reply(200, "OK", predictor.describe())
        elif context.get_request_header(index, "explain") == "True":
            html = wants_html(context, index)
            replies[index] = predictor.explain(
                row, types[index], html=html, deadline=explained_by, headers=headers[index]
            )
        else:
            plain.append(index)
    predicted = predictor.predict(
        [rows[index] for index in plain],
        [types[index] for index in plain],
        answered_by,
        [headers[index] for index in plain],
    )
    replies.update(zip(plain, predicted, strict=True))
    return [replies[index] for index in range(len(rows))]


def wants_html(context: Any, index: int) -> bool:
    """By the Accept header or the path NAME/VERSION/html: TorchServe passes no query parameters of a POST on."""
    accepted = context.get_request_header(index, "Accept") or context.get_request_header(index, "accept") or ""
    path = context.get_request_header(index, "url_path") or ""
    return accepted.startswith("text/html") or path.strip("/").partition("?")[0] == "html"


def enveloped(rows: list[Any] | None, context: Any) -> bool:
    """Whether TorchServe's KServe envelope has taken the rows out of a request's body."""
    if not rows or not isinstance(rows[0], Mapping):
        return True
    bodies = [key for key in BODY_KEYS if isinstance(context.get_request_header(0, key), Mapping)]
    return bool(bodies) and bodies[0] not in rows[0]


def unwrapped(replies: list[Reply], context: Any) -> list[Any]:
    """Replies as the envelopes want them: v1 plain objects, v2 (which knows arrays only) strings of JSON.

    The inputs share one request and so one status: an error's only where no input has an answer.
    """
    if all(reply.status != 200 for reply in replies):
        context.set_response_status(code=replies[0].status, phrase=replies[0].phrase, idx=0)
    payloads = [reply.payload for reply in replies]
    return [json.dumps(payload) for payload in payloads] if hasattr(context, "input_names") else payloads


def respond(reply: Reply, context: Any, index: int, limit: int) -> bytes:
    """A reply as at most ``limit`` bytes of JSON, its status set on the request."""
    try:
        page = reply.payload if isinstance(reply.payload, str) else None
        body = (page or _ENCODER.encode(reply.payload)).encode()
        if len(body) > limit:
            message = f"the answer has {len(body)} bytes, at most {limit} are sent; ask for less at a time"
            raise RequestError("too_large", message)
    except (ValueError, RequestError) as error:
        failure = error if isinstance(error, RequestError) else internal_error(error)
        reply = Reply(failure.status, failure.phrase, failure.body())
        body = json.dumps(reply.payload).encode()
    context.set_response_content_type(index, reply.content_type)
    if reply.status != 200:
        context.set_response_status(code=reply.status, phrase=reply.phrase, idx=index)
    return body


def metrics_sink(context: Any) -> Sink:
    """Hands figures to TorchServe, which shows them at its metrics address, in Prometheus form if so configured."""

    def emit(sample: Sample) -> None:
        dimensions = [Dimension("ModelName", context.model_name), Dimension("Level", "Model")]
        if sample.error is not None:
            dimensions.append(Dimension("Error", sample.error))
        kind = MetricTypes.COUNTER if sample.kind == "counter" else MetricTypes.GAUGE
        context.metrics.add_metric(
            f"efft_{sample.name}", sample.value, sample.unit, dimensions=dimensions, metric_type=kind
        )

    return emit
