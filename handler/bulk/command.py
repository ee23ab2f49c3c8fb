"""``python -m handler.bulk IN OUT --archive NAME.mar``: scores every row of a file, on all cores, GPUs or a cluster."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv as csv

from handler.archive import ArchiveError
from handler.bulk.errors import BulkError, one_line
from handler.bulk.on_ray import RayPool
from handler.bulk.partial import ARCHIVE, Partial
from handler.bulk.plan import make_plan, window_of
from handler.bulk.pool import Pool
from handler.bulk.progress import Progress
from handler.bulk.scorer import FIELDS, OPTIONAL, default_columns, task_of
from handler.bulk.sources import Source, kind_of, open_source, windows
from handler.bulk.work import Job
from handler.config import ConfigError
from handler.doctor import extracted
from handler.integrity import sha256

_HELP = """\
IN and OUT are .parquet, .jsonl (.ndjson, .json) or .csv (.tsv) files; IN may be packed (.gz, .zst, .bz2) or a folder of
files of one kind. OUT without such a name becomes a folder of numbered parts. OUT has IN's rows in IN's order, with the
columns of their answers; a row that has none says why in the column "error". A run that was stopped, by whatever,
goes on where it was when the same command is given again."""


def make_parser(prog: str = "python -m handler.bulk") -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, epilog=_HELP)
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--archive", type=Path, required=True, metavar="NAME.mar", help="or an unpacked one's folder")
    fields = "; ".join(f"{task}: {' '.join(names)}" for task, names in FIELDS.items())
    parser.add_argument(
        "--column", nargs="+", default=[], metavar="NAME",
        help=f"columns of the texts, in the order of the task's fields ({fields}), or FIELD=NAME; default: columns "
        "of the fields' own names",
    )  # fmt: skip
    parser.add_argument("--keep", nargs="*", metavar="NAME", help="columns of IN that OUT has too (default: all)")
    parser.add_argument("--prefix", default="", help="goes before the names of the answers' columns")
    parser.add_argument(
        "--option", nargs="+", default=[], metavar="KEY=VALUE", help="of every request, such as top_k=3"
    )
    parser.add_argument("--device", help="cpu, cuda (all GPUs) or cuda:N; default: the GPUs, else the CPU")
    parser.add_argument("--workers", type=int, help="default: one for each core, as memory allows; two for each GPU")
    parser.add_argument("--threads", type=int, help="of one worker")
    parser.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="score on the Ray cluster there (default: RAY_ADDRESS's, else one of this machine's own)",
    )  # fmt: skip
    parser.add_argument(
        "--save-every", type=float, default=20.0, metavar="SECONDS", help="what a kill may cost (default: 20)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, when all is done")
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier run has left of OUT")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m handler.bulk") -> int:
    """Run; returns the exit status: 0 when OUT is there, 1 with one line where it is not, 130 where it was stopped."""
    options = make_parser(prog).parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    try:
        run(options)
    except (BulkError, ArchiveError, ConfigError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or options.output}: {error.strerror or one_line(error)}")
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    return 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return 1


@dataclass(frozen=True)
class _Windows:
    """The windows of a source from a row on; pickled, for Ray reads in another process."""

    source: Source
    start: int
    rows: int
    size: int
    columns: list[str] | None

    def __call__(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = self.start
        for batch in windows(self.source.batches(start), self.rows, self.size, self.columns):
            yield start, batch
            start += batch.num_rows


def run(options: argparse.Namespace) -> None:
    """Score as the options say. Raises BulkError, ArchiveError, ConfigError or OSError."""
    _check(options)
    target, as_folder = _target(options)
    source = open_source(options.input)
    target = target or source.kind
    manifest = {
        "input": _identity(source),
        "archive": _digest(options.archive),
        "settings": [options.column, options.keep, options.prefix, sorted(options.option), target],
    }
    partial = Partial(options.output, target, manifest, options.save_every, as_folder)
    if partial.clear_finished():
        return
    if options.output.exists() and not options.overwrite:
        raise BulkError(f"{options.output} exists; remove it, or add --overwrite")
    with ExitStack() as stack:
        start = stack.enter_context(partial.locked(options.restart))
        folder = _unpack(options.archive, partial.folder / ARCHIVE)
        job = make_job(source, target, folder, options)
        pool: Pool | RayPool
        if options.ray is None:
            pool = Pool(folder, job, make_plan(folder, options.workers, options.threads, options.device))
        else:
            pool = RayPool(options.archive, folder, job, options)
        stack.enter_context(pool)
        rows, size = window_of(folder, pool.threads, pool.on_gpu)
        texts = None if source.kind == "jsonl" else list(job.columns.values())
        _score(partial, pool, _Windows(source, start, rows, size, texts), options.quiet)


def _score(partial: Partial, pool: Pool | RayPool, windows: _Windows, quiet: bool) -> None:
    assert pool.schema is not None
    if partial.kind == "csv":
        partial.header = header(pool.schema)
    source = windows.source
    errors = 0
    began = time.monotonic()
    with Progress(source, windows.start, str(pool), quiet) as progress:
        try:
            for done in pool.run(windows):
                partial.add(done)
                errors += done.errors
                progress.advance(done.end - done.start, errors)
        finally:
            partial.flush()
        rows = partial.finish(pool.schema)
    if not quiet:
        seconds = time.monotonic() - began
        rate = f"{rows - windows.start:,} of them now, in {seconds:.1f} s ({(rows - windows.start) / seconds:,.0f}/s)"
        sys.stderr.write(f"{partial.out}: {rows:,} rows, {rate}; {errors:,} of these with an error\n")


def make_job(source: Source, target: str, folder: Path, options: argparse.Namespace) -> Job:
    """What is done to each row. Raises BulkError where a column is missing or of a wrong type."""
    names = source.schema.names
    kept = names if options.keep is None else options.keep
    for name in kept:
        _require(source, name)
    return Job(
        source=source.kind,
        target=target,
        columns=text_columns(task_of(folder), options.column, source),
        kept=pa.schema([source.schema.field(name) for name in kept]),
        keep_all=options.keep is None,
        options=request_options(options.option),
        prefix=options.prefix,
    )


def text_columns(task: str, given: list[str], source: Source) -> dict[str, str]:
    """The request's fields and their columns, from ``--column``. Raises BulkError."""
    if not given:
        columns = default_columns(task, source.schema.names)
    else:
        if len(given) > len(FIELDS[task]):
            raise BulkError(f"{task} reads {' and '.join(FIELDS[task])}, but --column names {len(given)} columns")
        pairs = [_field_and_name(task, place, text, source) for place, text in enumerate(given)]
        columns = dict(pairs)
        needed = [field for field in FIELDS[task] if field not in OPTIONAL]
        if missing := [field for field in needed if field not in columns and f"{field}s" not in columns]:
            raise BulkError(f"{task} needs a column for {missing[0]}: --column {' '.join(f.upper() for f in needed)}")
    for field, name in columns.items():
        _require(source, name)
        lists = field in ("texts", "candidate_labels")
        if field == "candidate_labels" and source.kind == "parquet":  # or texts with commas between the labels
            lists = not _holds_text(source.schema.field(name).type, False)
        if source.kind == "parquet" and not _holds_text(source.schema.field(name).type, lists):
            kind = "lists of text" if lists else "text"
            raise BulkError(f"column {name!r} is {source.schema.field(name).type}, but {field} must be {kind}")
    return columns


def _field_and_name(task: str, place: int, text: str, source: Source) -> tuple[str, str]:
    field, _, name = text.partition("=")
    known = [*FIELDS[task], *(["texts"] if task == "rerank" else [])]
    if name and field in known:
        return field, name
    field = FIELDS[task][place]
    _require(source, text)
    if task == "rerank" and field == "text" and source.holds_lists(text):
        field = "texts"
    return field, text


def _require(source: Source, name: str) -> None:
    names = source.schema.names
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, names[:20]))}"
        raise BulkError(f"{source.paths[0].name} has no column {name!r}; {hint}")


def _holds_text(type: pa.DataType, lists: bool) -> bool:
    if lists:
        return pa.types.is_nested(type) and _holds_text(getattr(type, "value_type", pa.null()), False)
    if pa.types.is_dictionary(type):
        type = type.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(type) for test in (*tests, pa.types.is_binary, pa.types.is_large_binary))


def request_options(given: list[str]) -> dict[str, Any]:
    """Of ``--option``: values are JSON where they can be, else text. Raises BulkError."""
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise BulkError(f"an option is KEY=VALUE, such as top_k=3, not {text!r}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def header(schema: pa.Schema) -> bytes:
    """The first line of a CSV file."""
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.schema([(name, pa.string()) for name in schema.names]).empty_table(), sink)
    return sink.getvalue().to_pybytes()


def _check(options: argparse.Namespace) -> None:
    for name in ("workers", "threads", "save_every"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise BulkError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    if not options.archive.exists():
        raise BulkError(f"there is no archive {str(options.archive)!r}")
    if options.ray is not None and options.archive.is_dir():
        raise BulkError(f"--ray sends the archive to its workers: name the .mar, not the folder {options.archive}")


def _target(options: argparse.Namespace) -> tuple[str | None, bool]:
    """The output's kind (None: the input's), and whether it is a folder of parts."""
    out: Path = options.output
    if out.resolve() == options.input.resolve():
        raise BulkError("OUT must be another file than IN")
    kind = kind_of(out)
    if out.suffix and kind is None and not out.is_dir():
        raise BulkError(f"{out.name}: the output must be .parquet, .jsonl or .csv, or a folder (a name without a dot)")
    if kind is not None and out.with_suffix("").suffix and out.suffix in (".gz", ".zst", ".bz2"):
        raise BulkError(f"{out.name}: the output is not packed; name it {out.with_suffix('').name}")
    if not out.resolve().parent.is_dir():
        raise BulkError(f"there is no folder {str(out.resolve().parent)!r} for the output")
    return kind, kind is None


def _identity(source: Source) -> str:
    """Changes when the input does."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.paths]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _digest(archive: Path) -> str:
    return sha256(archive / "archive.json" if archive.is_dir() else archive)


def _unpack(archive: Path, folder: Path) -> Path:
    """Into the output's own folder, so that a kill leaves nothing elsewhere; anew, for one may have cut it short."""
    if archive.is_dir():
        return archive
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return extracted(archive, folder)
