"""The Grafana dashboard of a server's figures: a list of panels in, Grafana's JSON out.

``python -m deploy dashboard > deploy/grafana/efft.json`` writes the committed file, which Grafana imports (10 or later,
schema version 39) with a Prometheus data source that scrapes TorchServe's metrics address (deploy/prometheus.yml).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SCOPE = 'ModelName=~"$model"'
_FRONT_END = 'model_name=~"$model"'
_WINDOW = "$__rate_interval"


@dataclass(frozen=True)
class Query:
    """A PromQL expression and how its series are called."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph over time; ``unit`` is one of Grafana's."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""


def _rate(name: str, by: str = "", scope: str = _SCOPE) -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({name}{{{scope}}}[{_WINDOW}]))"


def _quantile(share: float, histogram: str, by: str = "") -> str:
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({share:g}, {_rate(f'efft_{histogram}_bucket', labels)})"


def _quantiles(histogram: str) -> tuple[Query, ...]:
    return tuple(Query(_quantile(share, histogram), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99))


PANELS = (
    Panel(
        "Requests", "reqps",
        (Query(_rate("ts_inference_requests_total", "model_name", _FRONT_END), "{{model_name}}"),),
        "What the front end has answered, per second.",
    ),
    Panel(
        "Errors by type", "reqps",
        (Query(_rate("efft_request_errors", "Error"), "{{Error}}"),),
        "Inputs that got an error of the handler's own (docs/requests.md, Errors).",
    ),
    Panel(
        "Mean wait in the queue", "µs",
        (
            Query(
                f"{_rate('ts_queue_latency_microseconds', 'model_name', _FRONT_END)} / "
                f"{_rate('ts_inference_requests_total', 'model_name', _FRONT_END)}",
                "{{model_name}}",
            ),
        ),
        "From a request's arrival until a worker takes it; TorchServe has the sum alone.",
    ),
    Panel(
        "A stage's 95th percentile", "s",
        (Query(_quantile(0.95, "stage_seconds", "Stage"), "{{Stage}}"),),
        "Of a batch: decode, encode (tokenize), run (the model), postprocess, respond (write JSON).",
    ),
    Panel("A pass of the model", "s", tuple(
        Query(
            f'histogram_quantile({share:g}, sum by (le) (rate(efft_stage_seconds_bucket{{{_SCOPE}, Stage="run"}}'
            f"[{_WINDOW}])))",
            f"p{100 * share:g}",
        )
        for share in (0.5, 0.95, 0.99)
    )),
    Panel(
        "Workers' share of time by stage", "percentunit",
        (Query(_rate("efft_stage_seconds_sum", "Worker, Stage"), "{{Worker}} {{Stage}}"),),
        "Seconds a second: what a worker does, the rest of the time it waits.",
    ),
    Panel("Requests in a batch", "none", _quantiles("batch_requests")),
    Panel("Tokens in a pass", "none", _quantiles("pass_tokens")),
    Panel(
        "Tokens and padding", "ops",
        (
            Query(_rate("efft_tokens"), "tokens"),
            Query(_rate("efft_padding_avoided"), "padding avoided"),
            Query(_rate("efft_padding"), "padding computed"),
        ),
        "Per second. A padded encoder would have computed both.",
    ),
    Panel("Share of pads in a pass", "percentunit", _quantiles("padding_share")),
    Panel(
        "Failures", "ops",
        (
            Query(_rate("efft_out_of_memory", "Worker"), "out of memory, {{Worker}}"),
            Query(_rate("efft_failed_passes", "Worker"), "failed pass, {{Worker}}"),
        ),
    ),
    Panel(
        "Known request answered as ever", "bool",
        (Query(f"min by (Worker) (efft_canary{{{_SCOPE}}})", "{{Worker}}"),),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Grafana's model of the dashboard: two panels in a row."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels = []
    for number, panel in enumerate(PANELS):
        targets = [
            {"refId": chr(65 + index), "datasource": source, "expr": query.expression, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ]
        panels.append(
            {
                "id": number + 1, "type": "timeseries", "title": panel.title, "description": panel.description,
                "datasource": source, "targets": targets,
                "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            }
        )  # fmt: skip
    variables = [
        {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {
            "name": "model", "type": "query", "datasource": source, "label": "Model", "multi": True, "includeAll": True,
            "query": "label_values(efft_tokens, ModelName)", "refresh": 2,
            "current": {"text": ["All"], "value": ["$__all"]},
        },
    ]  # fmt: skip
    return {
        "title": "EFFT", "uid": "efft", "schemaVersion": 39, "tags": ["efft", "torchserve"], "editable": True,
        "time": {"from": "now-30m", "to": "now"}, "refresh": "10s", "templating": {"list": variables}, "panels": panels,
    }  # fmt: skip
