"""What the dashboard's panels show of a real run: a Prometheus scrapes the server by the project's configuration and is
asked each panel's queries. Grafana itself is in none of the package registries."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from deploy.dashboard import PANELS, dashboard
from deploy.server import ROOT, Server
from handler.client import Client
from tests.e2e.conftest import SAMPLES, free_ports

PROMETHEUS = os.environ.get("EFFT_PROMETHEUS") or shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (apt-get install prometheus)")
SECONDS = 6.0
WINDOW = "1m"
QUERIES = [(panel.title, query.expression) for panel in PANELS for query in panel.queries]


def ask(url: str, path: str, **parameters: str) -> Any:
    """Prometheus' answer to a query of its HTTP API."""
    answer = requests.get(f"{url}/api/v1/{path}", params=parameters, timeout=10)
    assert answer.ok, answer.text
    return answer.json()["data"]


def load(server: Server) -> None:
    """Requests of both samples for some seconds, some of which are errors."""
    client = Client(server.url, key_file=server.folder / "key_file.json", timeout=60)
    end = time.monotonic() + SECONDS
    with client:
        while time.monotonic() < end:
            client.predict("ticket_routing", ["Where is my parcel?", "I was charged twice for one order."])
            client.predict("document_qa", {"question": "Who came?", "context": "Hanna came on Monday."})
            for name in SAMPLES:
                url = f"{server.url}/predictions/{name}"
                assert requests.post(url, data=b"{", headers=server.headers(), timeout=60).status_code == 400
            time.sleep(0.2)


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one that has scraped the server by the project's own configuration, under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.ports[2]}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [str(PROMETHEUS), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log, cwd=folder)
        try:
            load(server)
            time.sleep(2.5)  # the last second's figures, and their scrape
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(20)


def test_the_server_is_scraped(prometheus: str, tmp_path: Path) -> None:
    (target,) = ask(prometheus, "targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_the_models_to_choose_from(prometheus: str) -> None:
    model = next(v for v in dashboard()["templating"]["list"] if v["name"] == "model")
    assert model["query"] == "label_values(efft_tokens, ModelName)"
    assert set(SAMPLES) <= set(ask(prometheus, "label/ModelName/values", **{"match[]": "efft_tokens"}))


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[f"{i}-{t}" for i, (t, _) in enumerate(QUERIES)])
def test_every_query_has_figures(prometheus: str, title: str, expression: str) -> None:
    filled = expression.replace("$model", "|".join(SAMPLES)).replace("$__rate_interval", WINDOW)
    series = ask(prometheus, "query", query=filled)["result"]
    values = [float(one["value"][1]) for one in series]
    assert values, f"{title}: no data for {filled}"
    assert any(math.isfinite(value) for value in values), f"{title}: {series}"
    if title not in ("Failures", "Tokens and padding", "Share of pads in a pass"):
        assert max(value for value in values if math.isfinite(value)) > 0, f"{title}: {series}"
