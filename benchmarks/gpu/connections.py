"""Clients in a closed loop over kept-alive connections, each of whose answers is held against one known to be right."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests

A_PROCESS = 16
"""Connections that one process of clients holds."""
WARM_UP = 1.0
"""Seconds of load before latencies count."""
_GATHER = 1.0
"""Seconds in which every process gets ready."""


@dataclass(frozen=True)
class Load:
    """What is asked: ``bodies`` as JSON at ``url``, and the answer ``expected`` to each, whose scores may differ by
    ``allowed``."""

    url: str
    headers: dict[str, str]
    bodies: Sequence[Any]
    expected: Sequence[Any]
    allowed: float


def difference(one: Any, other: Any) -> float:
    """The largest difference of two numbers at the same place of two answers; infinite where anything else differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if one == other else float("inf")


def load(work: Load, connections: int, seconds: float) -> dict[str, Any]:
    """So many clients, each of which asks again as soon as it is answered.

    Returns requests a second and percentiles in milliseconds of requests sent within ``seconds`` behind the warm-up,
    and how many answers had which status over the whole time: ``different`` for a 200 that is not as expected, an
    exception's name where there was no answer.
    """
    shares = [min(A_PROCESS, connections - at) for at in range(0, connections, A_PROCESS)]
    begin = time.time() + _GATHER
    jobs = [(work, share, begin, seconds, seed) for seed, share in enumerate(shares)]
    with ProcessPoolExecutor(len(jobs), mp_context=multiprocessing.get_context("fork")) as pool:
        parts = list(pool.map(_clients, jobs))
    latencies = sorted(latency for part, _ in parts for latency in part)
    statuses = sum((Counter(counted) for _, counted in parts), Counter())
    return {
        "connections": connections,
        "requests_per_second": round(len(latencies) / seconds, 1),
        "milliseconds": {
            str(p): round(1e3 * latencies[int(len(latencies) * p / 100)], 2) for p in (50, 95, 99) if latencies
        },
        "answers": dict(statuses),
    }


def _clients(job: tuple[Load, int, float, float, int]) -> tuple[list[float], dict[str, int]]:
    """One process's connections, a thread each; latencies in seconds, and how many answers had which status."""
    work, connections, begin, seconds, seed = job
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    lock = threading.Lock()

    def client(number: int) -> None:
        order = list(range(len(work.bodies)))
        random.Random(1000 * seed + number).shuffle(order)
        counted = begin + WARM_UP
        own, seen, turn = [], Counter[str](), 0
        time.sleep(max(0.0, begin - time.time()))
        with requests.Session() as session:
            while (start := time.time()) < counted + seconds:
                index = order[turn % len(order)]
                turn += 1
                seen[_ask(session, work, index)] += 1
                if start >= counted:
                    own.append(time.time() - start)
        with lock:
            latencies.extend(own)
            statuses.update(seen)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, dict(statuses)


def _ask(session: requests.Session, work: Load, index: int) -> str:
    try:
        answer = session.post(work.url, json=work.bodies[index], headers=work.headers, timeout=60)
        if answer.status_code == 200 and not difference(answer.json(), work.expected[index]) <= work.allowed:
            return "different"
        return str(answer.status_code)
    except (requests.RequestException, ValueError) as error:
        return type(error).__name__
