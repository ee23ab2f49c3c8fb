"""Spans: a batch and its stages, a client's trace as parent or link; none where nobody asks for them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from handler import tracing
from handler.service import EncoderService
from tests.unit.handler_fakes import PooledLogits, save_archive
from tests.unit.test_handler_service import TEXT, context

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_archive(tmp_path_factory.mktemp("archive"), PooledLogits(2), "sequence_classification", {})


@pytest.fixture
def spans(folder: Path) -> tuple[EncoderService, Any]:
    """A service whose spans stay in memory."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = EncoderService()
    service.initialize(context(folder, 0))
    assert service._predictor is not None
    assert service._predictor.metrics.tracer is None  # the environment names no endpoint
    service._predictor.metrics.tracer = provider.get_tracer("test")
    return service, exporter


def test_a_request_alone_continues_its_clients_trace(spans: tuple[EncoderService, Any], folder: Path) -> None:
    service, exporter = spans
    service.handle([{"body": {"text": TEXT}}], context(folder, 1, **{"Content-Length": "9", "TraceParent": PARENT}))
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {"batch", "decode", "encode", "run", "postprocess", "respond"}
    assert f"{found['batch'].context.trace_id:032x}" == TRACE
    assert found["batch"].attributes["efft.requests"] == 1
    children = [found[name].parent.span_id for name in ("decode", "encode", "run", "postprocess")]
    assert set(children) == {found["batch"].context.span_id}


def test_a_batch_of_several_links_to_their_traces(spans: tuple[EncoderService, Any], folder: Path) -> None:
    service, exporter = spans
    service.handle([{"body": TEXT}] * 2, context(folder, 2, **{"Content-Length": "9", "traceparent": PARENT}))
    (batch,) = [span for span in exporter.get_finished_spans() if span.name == "batch"]
    assert batch.parent is None
    assert [f"{link.context.trace_id:032x}" for link in batch.links] == [TRACE, TRACE]
    assert TEXT not in str([span.to_json() for span in exporter.get_finished_spans()])


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert tracing.tracer_of_environment("x") is None
    monkeypatch.setenv(tracing.ENDPOINTS[0], "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with caplog.at_level(logging.WARNING):
        assert tracing.tracer_of_environment("x") is None
    (message,) = caplog.messages
    assert "is not installed; there are no spans" in message
