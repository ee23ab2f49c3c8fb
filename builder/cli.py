"""Builds TorchServe archives from Hugging Face encoder checkpoints."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, get_args

from pydantic import ValidationError

from builder import signing
from builder.errors import BuildError
from builder.native import command as native_command
from builder.tune import command as tune_command
from handler.archive import ArchiveError
from handler.config import ConfigError, SetupConfig, first_problem
from handler.faults import guarded
from handler.schemes import SCHEMES, Compute
from handler.spellings import DATA_TYPES, KINDS, OLDER, TASKS, Encoder, ModelFormat, modern, task_named

if TYPE_CHECKING:  # it brings torch
    from builder.archive import LibraryFile

_STEPS = 5
_STEPS_OF_ADAPTER = 3


def main(
    arguments: Sequence[str] | None = None,
    prog: str = "python -m builder",
    spelled: Mapping[str, str] | None = None,
) -> int:
    """Run one subcommand; returns the process's exit status.

    ``spelled``: what a user who never typed the options calls each of them (``--task``: ``TASK``).
    """
    options = _parser(prog, spelled).parse_args(arguments, argparse.Namespace(spelled=spelled or {}))
    return guarded("builder", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    try:
        options.run(options)
        sys.stdout.flush()
    except ValidationError as error:
        print(f"builder: {first_problem(error)}", file=sys.stderr)
        return 1
    except (BuildError, ConfigError, ArchiveError) as error:
        print(f"builder: {_as_spelled(' '.join(str(error).split()), options.spelled)}", file=sys.stderr)
        return 1
    return 0


def _as_spelled(text: str, spelled: Mapping[str, str]) -> str:
    """A message in the user's own names of the options."""
    return re.sub(r"(?<![\w-])--[a-z0-9-]+", lambda option: spelled.get(option[0], option[0]), text)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line, without the usage before it."""

    spelled: ClassVar[Mapping[str, str]] = {}

    def error(self, message: str) -> NoReturn:
        """See argparse.ArgumentParser.error."""
        option = re.match(r"argument (--[a-z0-9-]+)", message)
        if option is not None and option[1] in self.spelled:
            self.exit(2, f"builder: {self.spelled[option[1]]}={message[option.end() :]}\n")
        self.exit(2, f"builder: {message}; see {self.prog} --help\n")


def _parser(prog: str = "python -m builder", spelled: Mapping[str, str] | None = None) -> argparse.ArgumentParser:
    class Spelled(_Parser):
        """Of the subcommands, too, which are made of the parser's own class."""

    Spelled.spelled = spelled or {}
    parser = Spelled(prog=prog, description=__doc__)
    commands: Any = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_compile(commands)
    _add_archive(commands)
    tune_command.add_parser(commands)
    signing.add_parsers(commands)
    native_command.add_parsers(commands)
    inspecting = commands.add_parser("inspect", help="print what an archive holds")
    inspecting.add_argument("archive", type=Path)
    inspecting.add_argument("--json", action="store_true", help="as JSON")
    inspecting.set_defaults(run=_inspect)
    return parser


def _add_compile(commands: Any) -> None:
    compiling = commands.add_parser("compile", help="compile the kernels and print the library's path")
    compiling.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    compiling.add_argument("--targets", nargs="+", metavar="CC", help="CUDA compute capabilities, such as 90a")
    compiling.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan (CPU only)")
    compiling.set_defaults(run=_compile)


def _add_archive(commands: Any) -> None:
    archiving = commands.add_parser("archive", help="compile, load, pack, trace, prove and archive a checkpoint")
    archiving.add_argument("config", nargs="?", type=Path, help="a setup config; the options below override its keys")
    archiving.add_argument("--model", dest="model_name", help="a local Hugging Face folder or a hub name")
    archiving.add_argument("--revision", help="the hub's branch, tag or commit")
    archiving.add_argument(
        "--adapter",
        action="append",
        metavar="[NAME=]DIR",
        help="a PEFT adapter to merge: a folder, or one's name within the model's; several with names, of which each "
        "request chooses one",
    )
    archiving.add_argument("--name", help="the archive's name (default: the checkpoint's)")
    archiving.add_argument(
        "--task",
        type=task_named,
        choices=TASKS,
        help="or a pipeline's name, such as text-classification (default: read off the checkpoint)",
    )
    _add_types(archiving)
    archiving.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="for 8 bits: texts like those to be served, a line each, as JSON lines with text and text_pair, or SQuAD",
    )
    archiving.add_argument("--max-length", type=int, help="longest sequence in tokens")
    archiving.add_argument("--batch-size", type=int, help="most requests TorchServe joins")
    archiving.add_argument("--output", type=Path, default=Path("model_store"), help="default: model_store")
    archiving.add_argument(
        "--device",
        choices=("cpu", "cuda", "auto"),
        default="auto",
        help="libraries to carry: the CPU's, CUDA's too, or CUDA's where there are nvcc and a GPU (default)",
    )
    archiving.add_argument("--gemm-config", type=Path, help="a gemm_config.json for the CUDA library, made by tune")
    archiving.set_defaults(run=_archive)


def _add_types(archiving: argparse.ArgumentParser) -> None:
    """Which form the model takes; older words for it, and words for what is not built, too."""
    archiving.add_argument("--encoder", choices=get_args(Encoder), help="default: fused")
    archiving.add_argument(
        "--format",
        choices=get_args(ModelFormat),
        help="of the model: traced by torch.jit (default) or by torch.export, or as transformers saves it",
    )
    archiving.add_argument("--compute", choices=get_args(Compute), help="the compute type (default: fp32)")
    archiving.add_argument("--scheme", choices=tuple(SCHEMES), help="of quantisation (default: none)")
    archiving.add_argument(
        "--int8-mode",
        type=int,
        choices=(1, 2),
        help="FasterTransformer's word: 1 is --scheme int8; 2 is refused with its figures",
    )
    archiving.add_argument("--sparse24", action="store_true", help="2:4 sparse weights: not built; says why")
    archiving.add_argument("--mode", type=task_named, choices=TASKS, help="the same as --task")
    archiving.add_argument(
        "--kind",
        choices=tuple(KINDS),
        help="encoder and format in one word: transformers as it is (ori), its modules traced (ths), the fused encoder "
        "(thsext)",
    )
    archiving.add_argument("--data-type", choices=tuple(DATA_TYPES), help="compute type and scheme in one word")


def _compile(options: argparse.Namespace) -> None:
    from builder.compile import CUDA_TARGETS, compile_cpu, compile_cuda

    if options.device == "cpu":
        print(compile_cpu(sanitize=options.sanitize))
    else:
        print(compile_cuda(options.targets or CUDA_TARGETS))


_OVERRIDES = (
    "model_name", "revision", "name", "task", "encoder", "format", "compute", "scheme", *OLDER, "max_length",
    "batch_size",
)  # fmt: skip


def chosen_adapters(given: Sequence[str]) -> dict[str, Any]:
    """The config's keys for ``--adapter``: one folder, or several as NAME=DIR. Raises ValueError."""
    if not given:
        return {}
    named = [re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", each) for each in given]
    if len(given) == 1 and (named[0] is None or Path(given[0]).is_dir()):
        return {"adapter": given[0], "adapters": {}}
    names = [match[1] for match in named if match is not None]
    if len(names) < len(given):
        nameless = given[named.index(None)]
        raise ValueError(f"--adapter {nameless}: of several each needs a name, as in --adapter NAME=DIR")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"--adapter {twice}: two have this name")
    return {"adapter": None, "adapters": {match[1]: match[2] for match in named if match is not None}}


def _setup_config(options: argparse.Namespace) -> SetupConfig:
    try:
        # In the newer words before they meet those of the file, which they replace.
        given = modern({key: getattr(options, key) for key in _OVERRIDES if getattr(options, key) is not None})
        given |= chosen_adapters(options.adapter or [])
    except ValueError as error:
        raise BuildError(str(error)) from error
    if options.config is None and "model_name" not in given:
        raise BuildError("name a setup config or give --model; see python -m builder archive --help")
    base = {} if options.config is None else SetupConfig.load(options.config).model_dump(exclude_unset=True)
    if given.keys() & {"encoder", "format"}:
        # The parent example's keys say the same thing; the option wins over them.
        base = {key: value for key, value in base.items() if key not in ("save_mode", "FasterTransformer")}
    try:
        return SetupConfig.model_validate({**base, **given})
    except ValidationError as error:
        raise BuildError(first_problem(error)) from error


def _has_gpu() -> bool:
    """Whether NVIDIA's driver runs here; a CPU build of torch could not tell."""
    return Path("/proc/driver/nvidia/version").exists()


def _archive(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from builder import adapted
    from builder.archive import build, check_type
    from builder.checkpoint import load
    from builder.naming import archive_name, check_output
    from builder.quantisation import unbuilt

    if options.sparse24:
        raise BuildError(unbuilt.SPARSE24)
    if options.int8_mode and (options.scheme, options.data_type) == (None, None):
        options.scheme = "int8"
    config = _setup_config(options)
    if options.int8_mode and config.scheme != "int8":
        raise BuildError(f"--int8-mode {options.int8_mode} contradicts scheme {config.scheme}; leave one of them out")
    if options.gemm_config is not None and not options.gemm_config.is_file():
        raise BuildError(f"{options.gemm_config} not found; python -m builder tune makes one")
    check_type(config, [options.device], options.calibrate)
    # What the user can mend is said before the compiler takes its minutes, and notes before the bar has its line.
    checkpoint = load(adapted.split(config)[0])
    name = archive_name(config.name, checkpoint.source)
    check_output(options.output, name)
    checkpoint.check_weight_files()
    if options.int8_mode == 2:
        unbuilt.refuse_mode_two(checkpoint, options.calibrate)
    wanted = options.device == "auto" and "cuda" in SCHEMES[config.scheme].devices
    cuda = options.device == "cuda" or (wanted and _has_gpu() and shutil.which("nvcc") is not None)
    steps = _STEPS + 1 + _STEPS_OF_ADAPTER * max(0, len(config.adapters) - 1)
    for note in checkpoint.notes:
        print(f"note: {checkpoint.source}: {_as_spelled(note, options.spelled)}", file=sys.stderr)
    replaced = _shown(options.output / f"{name}.mar")
    bar_format = "{n}/{total} {bar:20} {elapsed} {desc}"
    with tqdm(total=steps, bar_format=bar_format, file=sys.stderr, disable=None) as bar:

        def report(step: str) -> None:
            if bar.disable:  # no terminal: a log, where a line that is drawn over would run into the next one
                print(step, file=sys.stderr)
            bar.set_description_str(step)
            bar.update()

        libraries = [] if config.encoder != "fused" else _libraries(cuda, report)
        path, verdict = build(config, libraries, options.output, report, options.gemm_config, options.calibrate)
        bar.set_description_str("done")
    if replaced is not None:
        print(f"replaces {replaced}")
    print(verdict.line())
    _print_unused(path)
    print(path)


def _libraries(cuda: bool, report: Callable[[str], None]) -> list[LibraryFile]:
    from builder.archive import LibraryFile
    from builder.compile import CUDA_TARGETS, compile_cpu, compile_cuda, cpu_targets

    report("compiling the kernels" + (" (CPU and CUDA)" if cuda else ""))
    libraries = [LibraryFile(compile_cpu(), "cpu", cpu_targets())]
    if cuda:
        libraries.append(LibraryFile(compile_cuda(), "cuda", CUDA_TARGETS))
    return libraries


def _print_unused(path: Path) -> None:
    from builder.inspection import read_facts

    if unused := read_facts(path).checkpoint.get("unused"):
        some = ", ".join([*unused[:3], *["..."] * (len(unused) > 3)])
        print(f"not used: {len(unused)} weights of another task's head ({some})")


def _shown(path: Path) -> str | None:
    """An archive that is about to be replaced, with what it computes; None where there is none."""
    from builder.inspection import read_facts

    if not path.exists():
        return None
    try:
        facts = read_facts(path)
    except BuildError:
        return f"{path} (no archive made by this builder)"
    return f"{path} ({facts.task}, {facts.data_type})"


def _inspect(options: argparse.Namespace) -> None:
    from builder.inspection import describe, read_facts

    if options.json:
        print(json.dumps(read_facts(options.archive).model_dump(mode="json"), indent=1))
    else:
        print("\n".join(describe(options.archive)))
