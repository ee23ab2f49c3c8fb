"""The TorchServe adapter: the only file that knows TorchServe.

What its front end (0.12) tells a worker of a request, by its sources and by measurement (tests/e2e/test_headers.py,
tests/e2e/test_grpc.py): the headers of an HTTP request with the client's own names and values; on /predictions,
/explanations and KServe's addresses an ``explain`` of its own behind them; for a description ``describe``, alone in its
batch, without a body. A gRPC call has no headers at all, and its metadata stay in the front end.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

from handler.archive import ArchiveError
from handler.bodies import Headers
from handler.config import ConfigError
from handler.decode import BODY_KEYS, instance
from handler.draining import Drain
from handler.errors import RequestError, internal_error
from handler.metrics import Sample, Sink
from handler.open_inference import decoded, is_model_infer, model_infer
from handler.predictor import Predictor, Reply

LAST_ANSWERS = 1.0
"""Seconds that a worker lives on after its device has failed."""

logger = logging.getLogger(__name__)
RETRY_AFTER = 1
"""Seconds after which a client may ask again where it is answered 503."""
_FORMS = ("multipart/", "application/x-www-form-urlencoded")
_SEQUENCE = "ts_request_sequence_"
"""Begins the only headers that the front end makes up for a gRPC call (StreamPredictions2)."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class EncoderService:
    """TorchServe finds this class, calls ``initialize`` once and ``handle`` for each batch."""

    def __init__(self, predictor: Predictor | None = None, drain: Drain | None = None) -> None:
        self._predictor = predictor
        self._drain = drain or Drain.of_environment()

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
        While the server drains, everything but a description is answered 503, for the client to ask again.
        """
        assert self._predictor is not None
        predictor = self._predictor
        with self._drain.busy() as stopping:
            if enveloped(rows, context):
                inputs = rows or [None]
                replies = refusals(len(inputs)) if stopping else predictor.predict([_body(row) for row in inputs])
                answers = unwrapped(replies, context)
            else:
                replies = answered(predictor, rows or [], context, stopping=stopping)
                limit = predictor.config.limits.max_answer_bytes
                answers = [respond(reply, context, index, limit) for index, reply in enumerate(replies)]
        end_streams(context)
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


def _body(row: Any) -> dict[str, Any]:
    return {"body": instance(row)}


def refusals(count: int) -> list[Reply]:
    """What requests get that reach a worker while the server stops."""
    error = RequestError("overloaded", "the server is stopping; ask again")
    return [Reply(error.status, error.phrase, error.body()) for _ in range(count)]


def content_type(context: Any, index: int) -> str | None:
    """Of the body, which TorchServe files under the parameter's name."""
    headers = context.get_all_request_header(index)
    for key in BODY_KEYS:
        if isinstance(headers.get(key), Mapping):
            return headers[key].get("content-type")
    return None


def over_grpc(context: Any, index: int) -> bool:
    """Whether a row came by gRPC: then it has no header, while the front end gives HTTP requests a content-length."""
    headers = context.get_all_request_header(index)
    return not any(isinstance(value, str) and not key.startswith(_SEQUENCE) for key, value in headers.items())


def wants_description(rows: list[Mapping[str, Any]], context: Any) -> bool:
    """Whether this batch is a description that the management address asks for.

    A client's own ``describe`` header is told by what comes with it: another row, an ``explain`` of the front end, a
    body (which every HTTP request but an empty form has) or the content type of a form.
    """
    if len(rows) != 1 or rows[0] or context.get_request_header(0, "describe") != "True":
        return False
    headers = context.get_all_request_header(0)
    types = [v.lower() for k, v in headers.items() if k.lower() == "content-type" and isinstance(v, str)]
    return "explain" not in headers and not any(kind.strip().startswith(_FORMS) for kind in types)


def answered(
    predictor: Predictor, rows: list[Mapping[str, Any]], context: Any, *, stopping: bool = False
) -> list[Reply]:
    """A reply for each row, also where routing fails: TorchServe would log the exception, and a user's text with it."""
    try:
        return route(predictor, rows, context, stopping=stopping)
    except Exception as error:
        failure = internal_error(error)
        return [Reply(failure.status, failure.phrase, failure.body()) for _ in rows]


def route(predictor: Predictor, rows: list[Mapping[str, Any]], context: Any, *, stopping: bool = False) -> list[Reply]:
    """Explanations one by one, all predictions of the batch together; a description is a batch of its own."""
    if wants_description(rows, context):
        return [Reply(200, "OK", predictor.describe())]
    if stopping:
        return refusals(len(rows))
    types = [content_type(context, index) for index in range(len(rows))]
    headers = [context.get_all_request_header(index) for index in range(len(rows))]
    explained_by, answered_by = predictor.explanation_deadline(), predictor.deadline()
    plain = []
    replies: dict[int, Reply] = {}
    for index, row in enumerate(rows):
        if context.get_request_header(index, "explain") == "True":
            html = wants_html(context, index)
            replies[index] = predictor.explain(
                row, types[index], html=html, deadline=explained_by, headers=headers[index]
            )
        else:
            plain.append(index)
    by_open_inference = {index for index in plain if over_grpc(context, index) and is_model_infer(rows[index])}
    inputs = [decoded(rows[index]) if index in by_open_inference else rows[index] for index in plain]
    predicted = predictor.predict(
        inputs, [types[index] for index in plain], answered_by, [headers[index] for index in plain]
    )
    replies.update(zip(plain, predicted, strict=True))
    for index in by_open_inference:
        replies[index].payload = model_infer(replies[index].payload, rows[index], context.manifest)
    return [replies[index] for index in range(len(rows))]


def wants_html(context: Any, index: int) -> bool:
    """By the Accept header or the path NAME/VERSION/html: TorchServe passes no query parameters of a POST on."""
    headers = context.get_all_request_header(index)
    # A field of a form may have this name; then its content type stands here.
    path = headers.get("url_path")
    below = path.strip("/").partition("?")[0] if isinstance(path, str) else ""
    return Headers(headers).get("accept").startswith("text/html") or below == "html"


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
    if reply.status == HTTPStatus.SERVICE_UNAVAILABLE:
        context.set_response_header(index, "Retry-After", str(RETRY_AFTER))
    return body


def end_streams(context: Any) -> None:
    """Mark every gRPC answer as the last part of its stream.

    The front end reads this of every StreamPredictions answer and ends the worker where it is missing. It does not say
    which calls stream, and a second part for one that does not would end the worker too: so there is one part, the
    last. An HTTP answer with this header would be sent as the end of a stream that never began.
    """
    for index in range(len(context.request_processor or ())):
        if over_grpc(context, index):
            context.set_response_header(index, "ts_stream_next", "false")


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
