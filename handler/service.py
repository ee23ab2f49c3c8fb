"""The TorchServe adapter: the only file that knows TorchServe.

What its front end (0.12) tells a worker of a request, by its sources and by measurement (tests/e2e/test_headers.py,
tests/e2e/test_grpc.py): the headers of an HTTP request with the client's own names and values; on /predictions,
/explanations and KServe's addresses an ``explain`` of its own behind them; for a description ``describe``, alone in its
batch, without a body. A gRPC call has no headers at all, and its metadata stay in the front end.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import ts.service
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.metric_type_enum import MetricTypes
from ts.protocol import otf_message_handler

from handler import quick_json, tracing
from handler.archive import ArchiveError
from handler.bodies import Headers
from handler.config import ConfigError
from handler.decode import BODY_KEYS, instance
from handler.doors import Door
from handler.draining import Drain, end_process
from handler.errors import RequestError, internal_error
from handler.frames import Reader, Writer
from handler.metrics import Sample, Sink
from handler.open_inference import decoded, is_model_infer, model_infer
from handler.predictor import Predictor, Reply
from handler.reporting import Reporter

logger = logging.getLogger(__name__)
RETRY_AFTER = 1
"""Seconds after which a client may ask again where it is answered 503."""
_FORMS = ("multipart/", "application/x-www-form-urlencoded")
_FRAMES = "0.12."
"""The releases of TorchServe whose frames :mod:`handler.frames` knows."""


class EncoderService:
    """TorchServe finds this class, calls ``initialize`` once and ``handle`` for each batch."""

    def __init__(self, predictor: Predictor | None = None, drain: Drain | None = None) -> None:
        self._predictor = predictor
        self._drain = drain or Drain.of_environment()
        self._reporter: Reporter | None = None

    def initialize(self, context: Any) -> None:
        """Load the archive that TorchServe has extracted."""
        properties = context.system_properties
        try:
            settings = context.model_yaml_config
            self._predictor = Predictor.load(properties["model_dir"], properties.get("gpu_id"), settings)
        except (ArchiveError, ConfigError) as error:
            logger.error("%s cannot be served: %s", context.model_name, error)
            raise RuntimeError(str(error)) from None
        self._predictor.metrics.tracer = tracing.tracer_of_environment(f"efft.{context.model_name}")
        take_frames_over()
        # What was loaded stays: the collector need not look through torch's million objects for garbage again.
        gc.collect()
        gc.freeze()

    def handle(self, rows: list[Any] | None, context: Any) -> list[Any]:
        """Answer a batch: one reply, with its own status, for each row.

        Behind one of TorchServe's KServe envelopes the rows are one request's inputs, and plain objects go back.
        While the server drains, everything but a description is answered 503, for the client to ask again.
        """
        assert self._predictor is not None
        predictor = self._predictor
        metrics = predictor.metrics
        with metrics.lock, self._drain.busy() as stopping:
            if enveloped(rows, context):
                inputs = rows or [None]
                replies = refusals(len(inputs)) if stopping else predictor.predict([_body(row) for row in inputs])
                answers = unwrapped(replies, context)
            else:
                doors = [Door(context.get_all_request_header(index)) for index in range(len(rows or []))]
                with tracing.batch(metrics.tracer, context.model_name, (door.headers for door in doors)):
                    replies = answered(predictor, rows or [], context, doors, stopping=stopping)
                limit = predictor.config.limits.max_answer_bytes
                with metrics.stage("respond"):
                    answers = [respond(reply, context, index, limit) for index, reply in enumerate(replies)]
                end_streams(context, doors)
        self._report(context)
        if predictor.lost:
            logger.error("the device has failed; this worker ends, so that the server starts another")
            end_process()
        return answers

    def _report(self, context: Any) -> None:
        assert self._predictor is not None
        if self._reporter is None:
            self._reporter = Reporter(self._predictor.metrics, metrics_sink(context))
        self._reporter.wake()


def take_frames_over() -> None:
    """Have this worker's requests read and its answers written by :mod:`handler.frames`.

    Nothing happens where the process is no worker of TorchServe's, or of a release whose frames may be others.
    """
    worker: Any = sys.modules["__main__"]
    read, write = otf_message_handler.retrieve_msg, otf_message_handler.create_predict_response
    if not ts.__version__.startswith(_FRAMES) or getattr(worker, "retrieve_msg", None) is not read:
        return
    worker.retrieve_msg = Reader(
        otf_message_handler.retrieve_msg, decodes=os.environ.get("TS_DECODE_INPUT_REQUEST", "true") == "true"
    )
    if ts.service.create_predict_response is write and os.environ.get("LOCAL_RANK", "0") == "0":
        ts.service.create_predict_response = Writer(write)


def _body(row: Any) -> dict[str, Any]:
    return {"body": instance(row)}


def refusals(count: int) -> list[Reply]:
    """What requests get that reach a worker while the server stops."""
    error = RequestError("overloaded", "the server is stopping; ask again")
    return [Reply(error.status, error.phrase, error.body()) for _ in range(count)]


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
    predictor: Predictor, rows: list[Mapping[str, Any]], context: Any, doors: list[Door], *, stopping: bool = False
) -> list[Reply]:
    """A reply for each row, also where routing fails: TorchServe would log the exception, and a user's text with it."""
    try:
        return route(predictor, rows, context, doors, stopping=stopping)
    except Exception as error:
        failure = internal_error(error)
        return [Reply(failure.status, failure.phrase, failure.body()) for _ in rows]


def route(
    predictor: Predictor, rows: list[Mapping[str, Any]], context: Any, doors: list[Door], *, stopping: bool = False
) -> list[Reply]:
    """Explanations one by one, all predictions of the batch together; a description is a batch of its own."""
    if wants_description(rows, context):
        return [Reply(200, "OK", predictor.describe())]
    if stopping:
        return refusals(len(rows))
    explained_by, answered_by = predictor.explanation_deadline(), predictor.deadline()
    plain = []
    replies: dict[int, Reply] = {}
    for index, door in enumerate(doors):
        if door.explained:
            html = wants_html(context, index)
            replies[index] = predictor.explain(
                rows[index], door.content_type, html=html, deadline=explained_by, headers=door.headers
            )
        else:
            plain.append(index)
    by_open_inference = {index for index in plain if doors[index].over_grpc and is_model_infer(rows[index])}
    inputs = [decoded(rows[index]) if index in by_open_inference else rows[index] for index in plain]
    predicted = predictor.predict(
        inputs,
        [doors[index].content_type for index in plain],
        answered_by,
        [doors[index].headers for index in plain],
        arrays=True,
    )
    if not replies and not by_open_inference:
        return predicted
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
    """A reply as at most ``limit`` bytes, JSON unless it is a page or bytes; its status is set on the request."""
    try:
        payload = reply.payload
        if isinstance(payload, str):
            body = payload.encode()
        else:
            body = payload if isinstance(payload, bytes) else quick_json.dumps(payload)
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


def end_streams(context: Any, doors: list[Door]) -> None:
    """Mark every gRPC answer as the last part of its stream.

    The front end reads this of every StreamPredictions answer and ends the worker where it is missing. It does not say
    which calls stream, and a second part for one that does not would end the worker too: so there is one part, the
    last. An HTTP answer with this header would be sent as the end of a stream that never began.
    """
    for index, door in enumerate(doors):
        if door.over_grpc:
            context.set_response_header(index, "ts_stream_next", "false")


def worker_name(arguments: list[str]) -> str:
    """By which TorchServe knows this worker, and a successor in its place: the number of its socket or port.

    ``arguments``: of the process. Elsewhere the process's own number.
    """
    for flag in ("--sock-name", "--port"):
        if flag in arguments[:-1]:
            number = arguments[arguments.index(flag) + 1].rpartition(".")[2]
            if number.isdecimal():
                return number
    return str(os.getpid())


def metrics_sink(context: Any) -> Sink:
    """Hands figures to TorchServe, which shows them at its metrics address, in Prometheus form if so configured.

    By TorchServe's own class of a figure, not by its cache: that one writes the numbers of all requests of the batch
    into every line.
    """
    model, worker = context.model_name, worker_name(sys.argv)
    known: dict[str, CachingMetric] = {}

    def emit(sample: Sample) -> None:
        kind = MetricTypes.COUNTER if sample.kind == "counter" else MetricTypes.GAUGE
        dimensions = {"ModelName": model, "Level": "Model", "Worker": worker, **dict(sample.labels)}
        metric = known.get(sample.name)
        if metric is None:
            metric = CachingMetric(f"efft_{sample.name}", sample.unit, list(dimensions), kind)
            known[sample.name] = metric
        metric.add_or_update(sample.value, list(dimensions.values()))

    return emit
