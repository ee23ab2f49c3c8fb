"""One task of several adapters: each request goes to the task of the adapter that it names, and is joined to none else.

Adapters of one archive share tokenizer, config and kind of answer; their weights, heads and labels are their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

from handler.errors import RequestError
from handler.packing import Arrays, grouped
from handler.schemas import Request
from handler.tasks.base import Job, Task
from handler.tokenizer import Input, Sequence


class Adapted(Task[Any]):
    """The tasks of all adapters by name, the first of which is for requests that name none."""

    def __init__(self, tasks: Mapping[str, Task[Any]]) -> None:
        self._tasks = dict(tasks)
        self._default = next(iter(tasks))
        first = self._tasks[self._default]
        super().__init__(first.facts, first.config, first.tokenizer)
        # Of every adapter alike; class variables of the task that is wrapped.
        self.request, self.answer = first.request, first.answer  # type: ignore[misc]
        self.per_token = first.per_token  # type: ignore[misc]

    def encode(self, requests: Many[Any]) -> list[Job[Any] | RequestError]:
        """See Task; every request's adapter is there (:func:`chosen`)."""
        jobs: list[Any] = [None] * len(requests)
        for name, places in self._grouped(requests).items():
            for place, job in zip(places, self._tasks[name].encode([requests[i] for i in places]), strict=True):
                jobs[place] = job
                for sequence in job.sequences if isinstance(job, Job) else ():
                    sequence.adapter = name
        return jobs

    def finish_all(self, jobs: Many[Job[Any]], outputs: Many[list[Arrays]]) -> list[dict[str, Any] | RequestError]:
        """See Task."""
        answers: list[dict[str, Any] | RequestError] = [{}] * len(jobs)
        for name, places in self._grouped([job.request for job in jobs]).items():
            own = self._tasks[name].finish_all([jobs[i] for i in places], [outputs[i] for i in places])
            for place, answer in zip(places, own, strict=True):
                answers[place] = answer
        return answers

    def input(self, request: Any) -> Input:
        """See Task."""
        return self._of(request).input(request)

    def finish(self, job: Job[Any], outputs: list[Arrays]) -> dict[str, Any]:
        """See Task."""
        return self._of(job.request).finish(job, outputs)

    def present(self, answer: dict[str, Any], request: Any, *, arrays: bool) -> dict[str, Any]:
        """See Task."""
        return self._of(request).present(answer, request, arrays=arrays)

    def keep(self, sequence: Sequence, outputs: Arrays) -> Arrays:
        """See Task."""
        return self._tasks[sequence.adapter or self._default].keep(sequence, outputs)

    def pass_tokens(self, budget: int) -> int:
        """See Task."""
        return min(task.pass_tokens(budget) for task in self._tasks.values())

    def _of(self, request: Request) -> Task[Any]:
        return self._tasks[request.adapter or self._default]

    def _grouped(self, requests: Many[Request]) -> dict[str, list[int]]:
        return grouped([request.adapter or self._default for request in requests])


def chosen(adapter: str | None, names: Many[str]) -> bool:
    """Whether an archive with adapters of these names, maybe none, answers a request that names this one, or none."""
    return adapter is None or adapter in names


def unknown(names: Many[str]) -> RequestError:
    """Of a request for an adapter that an archive with adapters of these names has not."""
    has = f"its adapters are {', '.join(names)}" if names else "it has none to choose from"
    return RequestError("invalid_request", f"this archive has no such adapter; {has}", "adapter")
