"""The same work on a Ray cluster, by Ray Data: one task reads, an actor for each GPU or share of cores scores.

The machine that starts the run reads the input and writes the output, so that order, parts and resuming are those of a
local run; only texts and answers travel. A block is one window: Ray divides and joins blocks between rows, so each is a
single row that holds its window as an Arrow IPC stream.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

import handler
from handler.archive import ArchiveError
from handler.bulk.errors import BulkError, one_line
from handler.bulk.plan import WORKERS_PER_GPU
from handler.bulk.pool import packed, unpacked
from handler.bulk.scorer import Scorer
from handler.bulk.work import Done, Job, Work
from handler.config import ConfigError

RETRIES = 3
"""Times that a window is tried whose actor has died."""
PATIENCE = 10.0
"""Seconds in which a cluster's machine must be reached."""
_WINDOW = pa.schema([("start", pa.int64()), ("batch", pa.large_binary())])
_DONE = pa.schema([("start", pa.int64()), ("end", pa.int64()), ("errors", pa.int64()), ("payload", pa.large_binary())])


class RayWork:
    """An actor of Ray Data: rows of windows in, rows of what is to be written out."""

    def __init__(self, archive: bytes, job: Job, threads: int, device: str) -> None:
        import ray

        with tempfile.NamedTemporaryFile(suffix=".mar") as file:
            file.write(ray.get(ray.cloudpickle.loads(archive)))
            file.flush()
            scorer = Scorer(
                file.name, job.columns, options=job.options, prefix=job.prefix, device=device, threads=threads
            )
            self._work = Work(job, scorer)

    def __call__(self, windows: pa.Table) -> pa.Table:
        """See the class."""
        pairs = zip(windows.column("start").to_pylist(), windows.column("batch").to_pylist(), strict=True)
        done = [self._work(start, unpacked(batch)) for start, batch in pairs]
        if self._work.lost:
            os._exit(1)  # Ray starts another process and tries again there
        return pa.Table.from_pylist(
            [{"start": d.start, "end": d.end, "errors": d.errors, "payload": d.payload} for d in done], schema=_DONE
        )


class RayPool:
    """Runs a job's windows on a Ray cluster; used as :class:`handler.bulk.pool.Pool` is.

    ``options``: of the command line. ``ray``: the cluster's address (empty: RAY_ADDRESS's, else a cluster of this
    machine's own); ``workers``: actors, None: as many as the cluster has room for; ``threads``: of each; ``device``.
    """

    def __init__(self, archive: Path, folder: Path, job: Job, options: Any) -> None:
        self.schema: pa.Schema | None = None
        self.threads: int = options.threads or 1
        self.on_gpu = False
        self._archive = archive
        self._folder = folder
        self._job = job
        self._address: str = options.ray
        self._workers: int | None = options.workers
        self._device: str | None = options.device

    def __enter__(self) -> RayPool:
        # Here first: what is wrong with the archive or an option is then said in one line, before actors start.
        scorer = Scorer(self._folder, self._job.columns, options=self._job.options, prefix=self._job.prefix,
                        device="cpu", threads=self.threads)  # fmt: skip
        self.schema = Work(self._job, scorer).schema
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def __str__(self) -> str:
        """For the user."""
        share = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        kind = "on GPUs" if self._device == "cuda" else f"with {share} each"
        return f"{self._workers} Ray actor{'s' if self._workers != 1 else ''} {kind}"

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of this process: what goes wrong comes as exceptions
        try:
            import ray
        except ImportError as error:
            raise BulkError("--ray needs Ray; pip install ray") from error
        own = self._address in ("", "local") and not os.environ.get("RAY_ADDRESS")
        settings: dict[str, Any] = {"include_dashboard": False} if own else {}
        if not own:  # a cluster that runs already need not have this package
            settings["runtime_env"] = {"py_modules": [str(Path(handler.__file__).parent)]}
            _reach(self._address)
        try:
            ray.init(address=self._address or None, logging_level=logging.ERROR, log_to_driver=False, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BulkError(f"no Ray cluster at {self._address!r} ({one_line(error)[:200]})") from error
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if self._device != "cpu" and self._runs_on_gpu() else 0
        if self._device not in (None, "cpu") and not gpus:
            raise BulkError(f"the Ray cluster has no GPU for --device {self._device}")
        self.on_gpu, self._device = gpus > 0, "cuda" if gpus else "cpu"
        room = gpus * WORKERS_PER_GPU if gpus else int(resources.get("CPU", 1)) // self.threads
        self._workers = self._workers or max(1, room)

    def _runs_on_gpu(self) -> bool:
        from handler.archive import ArchiveFacts

        facts = ArchiveFacts.load(self._folder / "archive.json")
        return "cuda" in facts.model.devices

    def run(self, windows: Callable[[], Iterator[tuple[int, pa.RecordBatch]]]) -> Iterator[Done]:
        """Score windows (first row, rows); yields them in order. Raises BulkError.

        ``windows``: makes the iterator, in a process of Ray's on this machine.
        """
        import ray
        from ray.exceptions import RayError

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # One task reads, as it should: it is never the actors that wait for it.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
        # The number of restarts, without a bound by default, has no parameter of its own yet.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        context.target_max_block_size = 1  # bytes: a block for each row, which is a window
        try:
            for table in self._dataset(windows).iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in table.to_pylist():
                    yield Done(**row)
        except RayError as error:
            raise BulkError(_cause(error)) from None

    def _dataset(self, windows: Callable[[], Iterator[tuple[int, pa.RecordBatch]]]) -> Any:
        import ray

        # Every machine has a resource of its address; the input is on this one.
        here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
        rows = ray.data.read_datasource(_source(windows), override_num_blocks=1, num_cpus=0, resources=here)
        assert self._device is not None
        # Pickled by itself the reference keeps the archive in the object store for actors that are started anew.
        reference = ray.cloudpickle.dumps(ray.put(self._archive.read_bytes()))
        share = {"num_gpus": 1 / WORKERS_PER_GPU} if self._device == "cuda" else {"num_cpus": self.threads}
        return rows.map_batches(
            RayWork,
            fn_constructor_args=(reference, self._job, self.threads, self._device),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._workers),
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            **share,
        )


def _reach(address: str) -> None:
    """Raises BulkError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        return  # "auto", ray://...: Ray finds it
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise BulkError(f"no Ray cluster at {address} ({one_line(error)}); ray start makes one") from error


def _source(windows: Callable[[], Iterator[tuple[int, pa.RecordBatch]]]) -> Any:
    """A source of Ray Data's that reads in one task, which yields as it goes."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> Iterable[pa.Table]:
        for start, batch in windows():
            yield pa.Table.from_pylist([{"start": start, "batch": packed(batch)}], schema=_WINDOW)

    class Windows(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None))]

    return Windows()


def _cause(error: BaseException) -> str:
    """What an actor or the reader has said, in one line."""
    cause = getattr(error, "cause", None) or error
    while isinstance(nested := getattr(cause, "cause", None) or cause.__cause__, BaseException):
        cause = nested
    if isinstance(cause, (BulkError, ArchiveError, ConfigError)):
        return str(cause)
    lines = [line for line in str(cause).strip().splitlines() if line.strip()] or [type(cause).__name__]
    return f"the run on Ray failed: {lines[-1].strip()[:300]}; what is done is kept, the same command goes on"
