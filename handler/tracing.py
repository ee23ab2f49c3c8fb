"""Spans by OpenTelemetry, where its SDK is installed and the environment says where to send them.

A batch is one span with one for each of its stages below it. A client's own trace (the header ``traceparent``, W3C
Trace Context) is the batch's parent where the batch holds that request alone, else a link: a batch has many clients.
Configured by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER ...).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)
Tracer: TypeAlias = Any
"""``opentelemetry.trace.Tracer``."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracer_of_environment(service: str) -> Tracer | None:
    """A tracer that exports by OTLP over HTTP; None where no endpoint is set, or (with a warning) no SDK installed."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("%s is set, but %s is not installed; there are no spans", ENDPOINTS[0], error.name)
        return None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("efft")


def batch(tracer: Tracer | None, model: str, headers: Iterable[Mapping[str, Any]]) -> AbstractContextManager[None]:
    """A batch's span; ``headers`` of each of its requests."""
    return _NOTHING if tracer is None else _span(tracer, model, headers)


_NOTHING: AbstractContextManager[None] = nullcontext()


@contextmanager
def _span(tracer: Tracer, model: str, headers: Iterable[Mapping[str, Any]]) -> Iterator[None]:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    requests = [{name.lower(): value for name, value in own.items() if isinstance(value, str)} for own in headers]
    contexts = [TraceContextTextMapPropagator().extract(own) for own in requests]
    parents = [trace.get_current_span(context).get_span_context() for context in contexts]
    known = [parent for parent in parents if parent.is_valid]
    alone = contexts[0] if len(requests) == 1 else None
    links = [] if alone is not None else [trace.Link(parent) for parent in known]
    attributes = {"efft.model": model, "efft.requests": len(requests)}
    with tracer.start_as_current_span(
        "batch", context=alone, kind=trace.SpanKind.SERVER, links=links, attributes=attributes
    ):
        yield
