"""Locust's side: requests at Poisson arrival times whatever the server does, each timed from when it was due.

A closed loop (a user waits for its answer before it asks again) slows down with the server and hides its queue;
Schroeder, Wierman and Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006. The plan comes as JSON in
the file that ``EFFT_PLAN`` names; the samples go to the file that the plan names.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, task

PLAN: dict[str, Any] = json.loads(Path(os.environ["EFFT_PLAN"]).read_text())
GRACE = 10.0
"""Seconds to wait for answers after the last request."""


class OpenLoop(FastHttpUser):
    """One user that starts a green thread for each arrival."""

    concurrency = 2000
    connection_timeout = 60.0
    network_timeout = 60.0

    @task
    def offer(self) -> None:
        """Send the whole plan, write the samples and end the run."""
        samples: list[tuple[float, float, int]] = []
        pool = Pool()
        start, used = time.perf_counter(), time.process_time()
        for index, due in enumerate(PLAN["arrivals"]):
            gevent.sleep(max(0.0, start + due - time.perf_counter()))
            pool.spawn(self.send, start, due, PLAN["bodies"][index % len(PLAN["bodies"])], samples)
        pool.join(timeout=GRACE)
        result = {"samples": samples, "processor_seconds": time.process_time() - used}
        Path(PLAN["samples"]).write_text(json.dumps(result))
        self.environment.runner.quit()

    def send(self, start: float, due: float, body: str, samples: list[tuple[float, float, int]]) -> None:
        """One request; appends (due, latency in seconds since then, HTTP status or 0)."""
        headers = {**PLAN["headers"], "Content-Type": "application/json"}
        with self.client.post(PLAN["path"], data=body, headers=headers, catch_response=True) as answer:
            samples.append((due, time.perf_counter() - start - due, answer.status_code or 0))
