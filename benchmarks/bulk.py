"""Bulk scoring beside the engine's own loop: rows a second, processor time a row, and rows after two kills.

The file is scored in three stretches, each but the last ended by SIGKILL; between them, in turns, as many processes as
bulk has workers call ``Engine.columns`` in a loop over texts in memory, which is what the engine can do at all. A
stretch's rate is from its first saved part to its last, so that neither counts start-up; both say the wall clock's rate
and the processor time a row, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tokenizers

from benchmarks import machine, results, texts

SHORTEST, LONGEST = 3, 12
"""Words of a text."""
_CLOSE = 1e-4
"""By how much a score may differ where its text ran in a pass of other lengths: int8 and bf16 round by the pass."""
_LOOP = """
import json, sys, time
from handler.engine import Engine
texts = [json.loads(line)["text"] for line in open(sys.argv[2])]
settings = {"maxWorkers": int(sys.argv[4]), "handler": {"threads": int(sys.argv[3]), "pin": True}}
engine = Engine.load(sys.argv[1], None, settings)
engine.columns(texts[:256])
print("ready", flush=True)
sys.stdin.readline()
start, used = time.perf_counter(), time.process_time()
rows = 0
while rows < int(sys.argv[5]):
    window = [texts[(rows + i) % len(texts)] for i in range(4096)]
    assert not any(engine.columns(window)["error"])
    rows += len(window)
print(rows, time.perf_counter() - start, time.process_time() - used, flush=True)
"""


@dataclass
class Stretch:
    """So many rows in seconds, and the processor seconds that they took."""

    rows: int
    seconds: float
    cpu: float

    def row(self, engine: str, **more: Any) -> dict[str, Any]:
        """For the result file."""
        rate, cpu = self.rows / self.seconds, 1e6 * self.cpu / self.rows
        return {"engine": engine, "rows": self.rows, "rows_per_second": round(rate, 1),
                "cpu_microseconds": round(cpu, 1), **more}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("archive", type=Path, metavar="NAME.mar", help="a classifier")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--loop-rows", type=int, default=40_000, help="of each process in each turn of the loop")
    parser.add_argument("--workers", type=int, default=machine.threads_available())
    parser.add_argument("--save-every", type=float, default=2.0, help="bulk's own option, in seconds")
    parser.add_argument("--ray-rows", type=int, default=0, help="score so many on a local Ray cluster, too")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON")


def run(options: argparse.Namespace) -> None:
    """Measure, check and write the result."""
    with tempfile.TemporaryDirectory(prefix="efft-bench-") as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, "-m", "zipfile", "-e", str(options.archive), str(folder / "files")], check=True)
        write_texts(folder / "in.jsonl", folder / "files" / "tokenizer.json", options.rows)
        with machine.Watch() as watch:
            rows = measure(options, folder)
        check(folder / "in.jsonl", folder / "out.jsonl")
        if options.ray_rows:
            rows += on_ray(options, folder)
    summary = summarise(rows)
    settings = {"archive": options.archive.name, "rows": options.rows, "words": [SHORTEST, LONGEST],
                "workers": options.workers, "kills": 2, "other_cores": round(watch.others, 2)}  # fmt: skip
    facts = machine.facts("cpu", machine.threads_available())
    print(json.dumps(summary))
    print(results.save("bulk", {**facts, "settings": settings, "summary": summary, "rows": rows}, options.output))


def write_texts(path: Path, tokenizer: Path, rows: int) -> None:
    """Texts of words from the archive's vocabulary, frequent ones more often."""
    vocabulary = tokenizers.Tokenizer.from_file(str(tokenizer)).get_vocab()
    with path.open("w", encoding="utf-8") as out:
        for number, text in zip(range(rows), texts.of_words(vocabulary, SHORTEST, LONGEST), strict=False):
            out.write(json.dumps({"id": number, "text": text}) + "\n")


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The loop, and bulk's stretches, in turns."""
    rows = [loop(options, folder).row("loop")]
    for number in (1, 2, 3):
        until = options.rows * number // 3 if number < 3 else None
        stretch = bulk(options, folder, until)
        rows.append(stretch.row("bulk", killed=until is not None))
        rows.append(loop(options, folder).row("loop"))
        print(rows[-2], rows[-1], sep="\n", flush=True)
    return rows


def loop(options: argparse.Namespace, folder: Path) -> Stretch:
    """One turn of the engine's own loop, in as many processes as bulk has workers."""
    threads = max(1, machine.threads_available() // options.workers)
    command = [sys.executable, "-c", _LOOP, str(folder / "files"), str(folder / "in.jsonl"), str(threads),
               str(options.workers), str(options.loop_rows)]  # fmt: skip
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": machine.ROOT}
    running = [subprocess.Popen(command, **pipes) for _ in range(options.workers)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    figures = [[float(part) for part in process.communicate()[0].split()] for process in running]
    # Processes that end at different times: each one's rate counts, not the slowest one's time.
    rate = sum(count / seconds for count, seconds, _ in figures)
    count = int(sum(count for count, _, _ in figures))
    return Stretch(count, count / rate, sum(cpu for _, _, cpu in figures))


def bulk(options: argparse.Namespace, folder: Path, until: int | None) -> Stretch:
    """A run of bulk on the file, killed when ``until`` rows are saved (None: left to its end)."""
    out = folder / "out.jsonl"
    command = [sys.executable, "-m", "handler.bulk", str(folder / "in.jsonl"), str(out), "--archive",
               str(options.archive), "--workers", str(options.workers), "--save-every", str(options.save_every),
               "--quiet"]  # fmt: skip
    process = psutil.Popen(command, cwd=machine.ROOT)
    seen = list(saved(process, out, until))
    if until is not None:
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
    if process.wait() != (0 if until is None else -9):
        raise ValueError(f"bulk ended with status {process.returncode}")
    (first, began, before), (last, ended, after) = seen[0], seen[-1]
    return Stretch(last - first, ended - began, after - before)


def saved(process: psutil.Popen, out: Path, until: int | None) -> Iterator[tuple[int, float, float]]:
    """(rows saved, time, processor seconds of all of the run's processes) whenever a part appears."""
    parts = out.with_name(out.name + ".partial")
    known = last_part(parts)
    while process.poll() is None:
        rows = last_part(parts)
        if rows > known:
            known = rows
            yield rows, time.perf_counter(), used(process)
        if until is not None and rows >= until:
            return
        time.sleep(0.02)


def last_part(folder: Path) -> int:
    """Rows saved so far."""
    return max((int(file.name[18:30]) for file in folder.glob("part-*.jsonl")), default=0)


def used(process: psutil.Popen) -> float:
    """Processor seconds of a process and its children."""
    total = 0.0
    try:
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            total += times.user + times.system
    except psutil.NoSuchProcess:
        pass
    return total


def check(source: Path, out: Path) -> None:
    """Raises ValueError unless the output has every row of the input once, in order, with an answer."""
    with source.open(encoding="utf-8") as asked, out.open(encoding="utf-8") as answered:
        for number, (line, answer) in enumerate(zip(asked, answered, strict=True)):
            row = json.loads(answer)
            if {"id": row["id"], "text": row["text"]} != json.loads(line) or "error" in row or "label" not in row:
                raise ValueError(f"row {number} of the output is not the input's: {answer[:200]}")


def on_ray(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The file's first rows by two Ray actors and by two local workers: rates, start-up included, and answers."""
    with (folder / "in.jsonl").open() as whole, (folder / "short.jsonl").open("w") as short:
        short.writelines(line for line, _ in zip(whole, range(options.ray_rows), strict=False))
    rows = []
    for engine, more in (("bulk, start to end", []), ("bulk --ray, start to end", ["--ray", "local"])):
        out = folder / f"short-{len(rows)}.jsonl"
        began = time.perf_counter()
        command = [sys.executable, "-m", "handler.bulk", str(folder / "short.jsonl"), str(out), "--archive",
                   str(options.archive), "--workers", str(options.workers), "--quiet", *more]  # fmt: skip
        subprocess.run(command, check=True, cwd=machine.ROOT)
        rate = options.ray_rows / (time.perf_counter() - began)
        rows.append({"engine": engine, "rows": options.ray_rows, "rows_per_second": round(rate, 1)})
        check(folder / "short.jsonl", out)
        rows[-1] |= same_answers(folder / "out.jsonl", out)
    return rows


def same_answers(one: Path, other: Path) -> dict[str, Any]:
    """How two outputs' first rows differ. Raises ValueError where labels do, or scores by more than rounding."""
    worst = 0.0
    with one.open() as first, other.open() as second:
        for a, b in zip(map(json.loads, first), map(json.loads, second), strict=False):
            worst = max(worst, abs(a["score"] - b["score"]))
            if a["id"] != b["id"] or a["label"] != b["label"] or worst > _CLOSE:
                raise ValueError(f"row {a['id']} has another answer in {other.name}")
    return {"largest_score_difference": worst}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each engine's median over its turns, and bulk's share of the loop's."""
    summary: dict[str, Any] = {}
    for engine in ("loop", "bulk"):
        own = [row for row in rows if row["engine"] == engine]
        for figure in ("rows_per_second", "cpu_microseconds"):
            summary[f"{engine}_{figure}"] = statistics.median(row[figure] for row in own)
    summary["bulk_rate_of_loop"] = round(summary["bulk_rows_per_second"] / summary["loop_rows_per_second"], 3)
    summary["loop_cpu_of_bulk"] = round(summary["loop_cpu_microseconds"] / summary["bulk_cpu_microseconds"], 3)
    return summary
