"""The engine: typed requests in, typed answers or arrays out, with one archive's model. It knows no server.

>>> from handler.engine import Engine
>>> with Engine.open("ticket_routing.mar") as engine:                       # doctest: +SKIP
...     engine.answer(["I was charged twice for one order."])[0].label
'billing'

Stages: read -> encode (tokenize) -> pack and run -> finish. An error is an item's own: it stands in its place and
spares the others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Many
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from handler import integrity
from handler.archive import ArchiveError, ArchiveFacts
from handler.columns import to_columns
from handler.config import ConfigError, SetupConfig
from handler.decode import Decoder
from handler.errors import RequestError, internal_error, is_panic
from handler.heap import Trimmer
from handler.metrics import Metrics
from handler.packing import Arrays, Model, Packer
from handler.runtime import load_adapters, load_model, pick_device, set_threads
from handler.schemas import Answer, Request
from handler.tasks import TASKS
from handler.tasks.adapted import Adapted, chosen, unknown
from handler.tasks.base import Job, Task
from handler.threads import Placement, ThreadSettings, gpu_threads, place
from handler.tokenizer import Tokenizer
from handler.transfer import wait_as

Item: TypeAlias = "Request | str | Mapping[str, Any] | RequestError"
"""A request of the task's schema, its fields as a mapping, or a text where the task takes one alone. An error that the
caller has found already keeps its place."""


def default_pass_tokens(device: torch.device) -> int:
    """The token budget of a pass where the config has none (SetupConfig.max_batch_tokens)."""
    return 16384 if device.type == "cuda" else 512 * torch.get_num_threads()


def most_cells(task: Task[Any], facts: ArchiveFacts, device: torch.device, pass_tokens: int) -> int | None:
    """Most cells of a pass, pads included, where its pads cost nothing but the memory of their ids.

    So a list of texts of any lengths is one pass on a GPU. On a CPU passes are small for the sake of the cache, and of
    tasks with outputs for every token the pads take memory too. Where ids are packed there are none.
    """
    free = facts.encoder == "fused" and device.type == "cuda" and not task.per_token
    return 4 * pass_tokens if free or facts.model.packed else None


class Engine:
    """Answers requests with one archive's model, in the caller's thread; not for several threads at a time.

    ``model`` is any callable of :class:`handler.packing.Model`'s signature, so that tests can bring their own;
    :meth:`open` and :meth:`load` make the archive's. :attr:`metrics` counts tokens, passes and times.
    """

    def __init__(
        self,
        facts: ArchiveFacts,
        config: SetupConfig,
        tokenizer: Tokenizer,
        model: Model,
        adapters: Mapping[str, tuple[ArchiveFacts, Model]] | None = None,
    ) -> None:
        adapters = adapters or {}
        self.facts = facts
        self.config = config
        self.model = model
        self.metrics = Metrics()
        self.placement = Placement(torch.get_num_threads())
        self.adapters = dict(adapters)
        """What the archive's adapters beyond the first are served with."""
        self.task = _task(facts, config, tokenizer, adapters)
        self.pass_tokens = self.task.pass_tokens(config.max_batch_tokens or default_pass_tokens(model.device))
        """Most tokens of one pass."""
        self._decoder = Decoder(self.task.request, config.limits)
        self.packer = Packer(
            model,
            pad_id=facts.pad_id,
            max_tokens=self.pass_tokens,
            keep=None if self.task.keeps_all else self.task.keep,
            packed=facts.encoder == "fused",
            metrics=self.metrics,
            vocabulary=getattr(model, "vocabulary", None),
            most_cells=most_cells(self.task, facts, model.device, self.pass_tokens),
            per_token=self.task.per_token,
            adapters={name: own for name, (_, own) in adapters.items()},
        )
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self._heap = Trimmer()

    @classmethod
    def open(cls, path: Path | str, *, device: str | None = None, threads: int = 0) -> Engine:
        """From ``NAME.mar`` or the folder of an unpacked one.

        ``device``: "cpu", "cuda" or "cuda:N"; None: the first GPU where the archive runs on one. ``threads``: of this
        process, for torch and the tokenizer; 0: one for each core it may use. A ``.mar`` is unpacked to a private
        temporary folder, which goes with :meth:`close`, at the latest when the process ends. Raises ArchiveError or
        ConfigError in one line that says what to do.
        """
        from handler.doctor import extracted  # here, because the doctor asks a predictor, which has an engine

        path = Path(path)
        if not path.exists():
            raise ArchiveError(f"there is no archive {str(path)!r}")
        unpacked = None if path.is_dir() else tempfile.TemporaryDirectory(prefix="efft-")
        try:
            folder = extracted(path, Path(unpacked.name)) if unpacked else path
            settings = {"maxWorkers": 1, "handler": {"threads": threads}}
            engine = cls.load(folder, choose_gpu(folder, device), settings)
        except BaseException:
            if unpacked:
                unpacked.cleanup()
            raise
        engine._unpacked = unpacked
        return engine

    @classmethod
    def load(cls, folder: Path | str, gpu: int | None = None, settings: Mapping[str, Any] | None = None) -> Engine:
        """From an extracted archive, as a server's worker does. ``gpu``: the device's index, None for the CPU;
        ``settings``: the content of ``model-config.yaml``, for threads and their cores.

        Raises ArchiveError or ConfigError in one line that says what to do.
        """
        folder = Path(folder)
        facts = ArchiveFacts.load(folder / "archive.json")
        integrity.check(folder, facts)
        config = SetupConfig.load(folder / "setup_config.json")
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ArchiveError("tokenizer.json is missing from the archive; build it again")
        # Before anything is computed: the threads that libraries start from here on inherit the worker's cores.
        threads = ThreadSettings.of(settings, config)
        if gpu is not None:
            wait_as(threads.workers)
            if not threads.threads:
                threads = threads.model_copy(update={"threads": gpu_threads(threads.workers)})
        placement = place(threads)
        set_threads(placement)
        model = load_model(folder, facts, config, gpu)
        adapters = load_adapters(folder, facts, model)
        length = min(facts.max_positions, config.max_length or facts.max_positions)
        try:
            most = config.limits.max_tokens
            tokenizer = Tokenizer(path, length, facts.uses_segments, most, facts.truncation_side)
        except Exception as error:  # the library raises Exception itself
            raise ArchiveError(f"tokenizer.json cannot be read ({error}); build the archive again") from error
        engine = cls(facts, config, tokenizer, model, adapters)
        engine.placement = placement
        return engine

    @property
    def models(self) -> list[Model]:
        """The archive's, and those of its adapters beyond the first."""
        return [self.model, *(own for _, own in self.adapters.values())]

    @property
    def lost(self) -> bool:
        """Whether the device has failed for good, so that only a new process can answer again."""
        return self.packer.lost

    def close(self) -> None:
        """Remove the files that :meth:`open` has unpacked."""
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, requests: Many[Request]) -> list[Job[Any] | RequestError]:
        """The first stage by itself, for who runs the stages side by side: each checked request's job, or its error.

        One thread at a time. The sequences of the jobs then go through :attr:`packer`, and what comes out of it,
        in their order, into :meth:`finish`.
        """
        return self._encode(list(requests))

    def finish(
        self, jobs: Many[Job[Any]], outputs: Iterable[Arrays | RequestError], *, arrays: bool = False
    ) -> list[dict[str, Any] | RequestError]:
        """The last stage by itself: each job's answer as :meth:`payloads` gives it, or its error. ``outputs``: of all
        their sequences.

        One thread at a time; of fill-mask archives not beside :meth:`encode`, since both ask the tokenizer.
        """
        return [
            answer if isinstance(answer, RequestError) else self.task.present(answer, job.request, arrays=arrays)
            for answer, job in zip(self._finish(jobs, iter(outputs)), jobs, strict=True)
        ]

    def answer(self, requests: Iterable[Item], deadline: float = float("inf")) -> list[Answer | RequestError]:
        """Each request's answer, of the task's schema (``engine.task.answer``), or its error; in order.

        ``deadline``: on the monotonic clock (time.monotonic), after which no pass begins; what is left then has
        "overloaded" as its error.
        """
        answers = self.payloads([self.read(item) for item in requests], deadline)
        return [item if isinstance(item, RequestError) else self.task.answer.model_validate(item) for item in answers]

    def columns(self, requests: Iterable[Item], deadline: float = float("inf")) -> dict[str, np.ndarray]:
        """The answers by column, each an array of as many rows as there are requests.

        The columns are the fields of the task's answer (handler/schemas.py): text and lists as objects (None where
        there is none), scores as float64 (NaN), whole numbers as int64 (-1; 0 for ``dropped_tokens``), ``embedding``
        as float32 [rows, dimensions] (NaN). ``error`` holds a row's RequestError, None where there is an answer.
        """
        return to_columns(self.task.answer, self.results([self.read(item) for item in requests], deadline))

    def read(self, item: Item) -> Request | RequestError:
        """A request that has been checked as a server's would be, or what is wrong with it."""
        if isinstance(item, RequestError):
            return item
        try:
            if isinstance(item, Request) and not isinstance(item, self.task.request):
                raise RequestError("invalid_request", f"this archive's requests are {self.task.request.__name__}s")
            return self._decoder.element(dict(item) if isinstance(item, Mapping) else item)
        except RequestError as error:
            return error

    def payloads(
        self, items: Many[Request | RequestError], deadline: float = float("inf"), *, arrays: bool = False
    ) -> list[dict[str, Any] | RequestError]:
        """Each checked request's answer as plain data, or its error; in order. See :meth:`answer` for the deadline.

        ``arrays``: whether vectors may stay numpy arrays, which :mod:`handler.quick_json` writes as they are.
        """
        answers = self.results(items, deadline)
        return [
            answer if isinstance(answer, RequestError) else self.task.present(answer, item, arrays=arrays)
            for answer, item in zip(answers, items, strict=True)
        ]

    def results(
        self, items: Many[Request | RequestError], deadline: float = float("inf")
    ) -> list[dict[str, Any] | RequestError]:
        """As :meth:`payloads`, but what the task has computed, before it is made presentable (Task.present)."""
        valid = [item for item in items if not isinstance(item, RequestError)]
        with self.metrics.stage("encode"):
            jobs = self._encode(valid)
        sequences = [sequence for job in jobs if isinstance(job, Job) for sequence in job.sequences]
        with self.metrics.stage("run"):
            outputs = iter(self.packer.run(sequences, deadline))
        with self.metrics.stage("postprocess"):
            finished = iter(self._finish(jobs, outputs))
            return [item if isinstance(item, RequestError) else next(finished) for item in items]

    def _encode(self, requests: list[Request]) -> list[Job[Any] | RequestError]:
        if not requests:
            return []
        names = self.facts.adapters
        if not all(chosen(request.adapter, names) for request in requests):
            known = iter(self._encode([request for request in requests if chosen(request.adapter, names)]))
            return [next(known) if chosen(request.adapter, names) else unknown(names) for request in requests]
        try:
            return self.task.encode(requests)
        except BaseException as error:
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            if len(requests) == 1:
                return [internal_error(error)]
        # One text the tokenizer cannot take must not cost the others their answers.
        return [job for request in requests for job in self._encode([request])]

    def _finish(
        self, jobs: Many[Job[Any] | RequestError], outputs: Iterator[Arrays | RequestError]
    ) -> list[dict[str, Any] | RequestError]:
        """Each job's answer or its error: its own, or the first one of its sequences'."""
        results: list[dict[str, Any] | RequestError] = []
        kept, whole, arrays = [], [], []
        for job in jobs:
            if isinstance(job, RequestError):
                results.append(job)
                continue
            own = [next(outputs)] if len(job.sequences) == 1 else list(islice(outputs, len(job.sequences)))
            failure = _first_error(own)
            if failure is None:
                kept.append(len(results))
                whole.append(job)
                arrays.append(own)
            results.append(failure or _UNFINISHED)
        self.metrics.add("truncations", sum([job.dropped > 0 for job in whole]))
        for index, answer in zip(kept, self._finished(whole, arrays), strict=True):
            results[index] = answer
        self._heap.tick()
        return results

    def _finished(self, jobs: list[Job[Any]], outputs: list[Any]) -> list[dict[str, Any] | RequestError]:
        try:
            return self.task.finish_all(jobs, outputs)
        except Exception as error:
            if len(jobs) == 1:
                return [internal_error(error)]
        # What a batch cannot be finished for must not cost the others their answers.
        return [answer for job, own in zip(jobs, outputs, strict=True) for answer in self._finished([job], [own])]


_UNFINISHED: dict[str, Any] = {}


def _first_error(outputs: Many[Arrays | RequestError]) -> RequestError | None:
    for output in outputs:
        if isinstance(output, RequestError):
            return output
    return None


def _task(
    facts: ArchiveFacts,
    config: SetupConfig,
    tokenizer: Tokenizer,
    adapters: Mapping[str, tuple[ArchiveFacts, Model]],
) -> Task[Any]:
    """The archive's task; where it has adapters to choose from, that of all of them."""
    first = TASKS[facts.task](facts, config, tokenizer)
    if not facts.adapters:
        return first
    others = {name: TASKS[own.task](own, config, tokenizer) for name, (own, _) in adapters.items()}
    return Adapted({facts.adapters[0]: first, **others})


def choose_gpu(folder: Path, device: str | None) -> int | None:
    """The index of the GPU that ``device`` ("cpu", "cuda", "cuda:N") names, None for the CPU.

    Without a device: GPU 0 where there is one and the unpacked archive runs on it. Raises ConfigError for a device
    that is none, or is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        return 0 if count and runs_on_gpu(folder) else None
    name, _, index = device.partition(":")
    if name not in ("cpu", "cuda") or (index and (name == "cpu" or not index.isdecimal())):
        raise ConfigError(f"a device is cpu, cuda or cuda:N, not {device!r}")
    if name == "cpu":
        return None
    if int(index or 0) >= count:
        raise ConfigError(f"there is no device {device}: torch sees {count} GPUs here")
    return int(index or 0)


def runs_on_gpu(folder: Path) -> bool:
    """Whether an unpacked archive runs on this machine's first GPU. Raises ArchiveError or ConfigError."""
    facts = ArchiveFacts.load(folder / "archive.json")
    config = SetupConfig.load(folder / "setup_config.json").model_copy(update={"cpu_fallback": False})
    try:
        return pick_device(facts, config, 0).type == "cuda"
    except ArchiveError:
        return False
