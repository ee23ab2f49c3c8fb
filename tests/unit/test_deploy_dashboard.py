"""The dashboard: the committed file is in step, and asks for figures that there are."""

from __future__ import annotations

import json
import re

import yaml

from deploy.dashboard import PANELS, dashboard
from deploy.server import ROOT
from handler.metrics import BOUNDS, Metrics

SOURCES = "\n".join(path.read_text() for path in (ROOT / "handler").rglob("*.py"))


def test_the_committed_file_is_in_step() -> None:
    committed = json.loads((ROOT / "deploy" / "grafana" / "efft.json").read_text())
    assert committed == dashboard(), "run: python -m deploy dashboard > deploy/grafana/efft.json"


def test_every_figure_asked_for_is_one_that_a_worker_hands_over() -> None:
    expressions = " ".join(query.expression for panel in PANELS for query in panel.queries)
    asked = set(re.findall(r"efft_(\w+)", expressions))
    assert len(asked) > 8
    for name in asked:
        histogram = re.sub(r"_(bucket|sum|count)$", "", name)
        assert histogram in BOUNDS or f'"{name}"' in SOURCES or name == "request_errors", name


def test_histograms_are_cumulative_and_their_labels_prometheus() -> None:
    metrics = Metrics()
    for tokens in (3, 100, 100_000):
        metrics.observe("pass_tokens", tokens)
    metrics.add("tokens", 1)
    samples = {(sample.name, dict(sample.labels).get("le")): sample.value for sample in metrics.taken()}
    assert samples["pass_tokens_bucket", "4"] == 1
    assert ("pass_tokens_bucket", "2") not in samples  # nothing to add to
    assert samples["pass_tokens_bucket", "64"] == 1
    assert samples["pass_tokens_bucket", "128"] == samples["pass_tokens_bucket", "16384"] == 2
    assert samples["pass_tokens_bucket", "+Inf"] == samples["pass_tokens_count", None] == 3
    assert samples["pass_tokens_sum", None] == 100_103
    assert metrics.taken() == []


def test_the_scrape_configuration_names_the_servers_address() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    server = (ROOT / "setup_configs" / "config.properties").read_text()
    assert f"metrics_address=http://{job['static_configs'][0]['targets'][0]}" in server
