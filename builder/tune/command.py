"""``python -m builder tune``: an archive's workers and threads, or the CUDA library's matrix products."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from builder.errors import BuildError
from handler.config import SetupConfig

_HELP = """\
With an archive: measures on this machine's GPUs, or its CPU, how many workers with how many threads, and what batch
size and delay, serve it best, and writes the winner into the archive's model-config.yaml.

With --model: times cuBLASLt's algorithms for a checkpoint's matrix products on this machine's GPU and writes
gemm_config.json, which "archive --gemm-config" takes."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    tuning = commands.add_parser(
        "tune",
        help="find an archive's best workers x threads on this machine, or (--model) cuBLASLt's best algorithms",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tuning.add_argument("archive", nargs="?", type=Path, metavar="NAME.mar", help="the archive to tune, in place")
    workers = tuning.add_argument_group("an archive's workers and threads")
    workers.add_argument(
        "--mix",
        help="lengths of the requests: short, uniform (default), squad, full, or a file with a text or a request's "
        "JSON object a line",
    )
    workers.add_argument(
        "--for",
        dest="goal",
        choices=("latency", "throughput", "p95"),
        help="p95: most requests/s of which 95 %% are answered within --within (default: throughput)",
    )
    workers.add_argument("--within", type=float, metavar="MS", help="milliseconds of --for p95 (default: 100)")
    workers.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: the GPUs where it runs on them")
    workers.add_argument("--seconds", type=float, help="of each measurement (default: 3)")
    workers.add_argument(
        "--no-pin", action="store_true", help="for a machine whose cores other programs use too: pin no threads"
    )
    gpu = tuning.add_argument_group("cuBLASLt's algorithms")
    gpu.add_argument("--model", help="a local Hugging Face folder or a hub name")
    gpu.add_argument("--data-type", choices=("fp32", "bf16", "fp16"), help="default: fp16")
    gpu.add_argument("--tf32", action="store_true", help="for fp32 under torch.backends.cuda.matmul.allow_tf32")
    gpu.add_argument("--output", type=Path, help="default: gemm_config.json")
    tuning.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Tune what is named. Raises BuildError, also where options of both kinds are mixed."""
    if (options.archive is None) == (options.model is None):
        raise BuildError("name either an archive (NAME.mar) or --model CHECKPOINT; see python -m builder tune --help")
    given = {
        "archive": ("mix", "goal", "within", "device", "seconds", "no_pin"),
        "--model": ("data_type", "tf32", "output"),
    }
    used = "archive" if options.archive is not None else "--model"
    other = "--model" if used == "archive" else "an archive"
    for name in given["--model" if used == "archive" else "archive"]:
        if getattr(options, name):
            flag = "--" + {"goal": "for"}.get(name, name).replace("_", "-")
            raise BuildError(f"{flag} goes with {other}; see python -m builder tune --help")
    if used == "archive":
        _tune_workers(options)
    else:
        _tune_products(options)


def _tune_workers(options: argparse.Namespace) -> None:
    from builder.tune.workers import WITHIN, Device, Goal, table, tune

    seconds = 3.0 if options.seconds is None else options.seconds
    if not 0 < seconds <= 600:
        raise BuildError(f"--seconds must be between 0 and 600, not {seconds:g}")
    if options.within is not None and (options.goal != "p95" or options.within <= 0):
        raise BuildError("--within goes with --for p95 and takes milliseconds, such as 100")
    if not options.archive.is_file():
        raise BuildError(f"no file {str(options.archive)!r}")

    def report(step: str) -> None:
        print(f"measuring {step}", file=sys.stderr)

    goal: Goal = options.goal or "throughput"
    device: Device = options.device or "auto"
    result = tune(
        options.archive,
        options.mix or "uniform",
        goal,
        seconds,
        pin=not options.no_pin,
        device=device,
        within=options.within or WITHIN,
        report=report,
    )
    print(table(result))
    for number, placement in enumerate(result.placements, 1):
        print(f"worker {number}: {placement}")
    best = result.best.setting
    print(
        f"{options.archive}: {best.workers} x {best.threads}, batchSize {best.batch_size}, "
        f"maxBatchDelay {best.max_batch_delay}, best for {goal}"
    )
    if result.unsigned:
        print(f"{options.archive}: its signature went, as the archive has changed; sign it again (builder sign)")


def _tune_products(options: argparse.Namespace) -> None:
    import torch

    from builder import ops
    from builder.checkpoint import load
    from builder.compile import compile_cpu, compile_cuda
    from builder.families import spec_of
    from builder.models import DTYPES
    from builder.tune import gemm as tune

    if not torch.cuda.is_available():
        raise BuildError("tuning cuBLASLt needs a GPU and a CUDA build of torch; torch sees none here")
    spec = spec_of(load(SetupConfig(model_name=options.model)).config)
    ops.load(compile_cpu())
    torch.ops.load_library(str(compile_cuda()))
    output = options.output or Path("gemm_config.json")
    tune.write(tune.tune(spec, DTYPES[options.data_type or "fp16"], tf32=options.tf32), output)
    print(output)
