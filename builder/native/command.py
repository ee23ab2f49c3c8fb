"""The subcommands ``export-native`` and ``install-native``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parsers(commands: Any) -> None:
    """Add both to a parser's subcommands."""
    exporting = commands.add_parser("export-native", help="write an archive's model as a folder for C and C++")
    exporting.add_argument("archive", type=Path)
    exporting.add_argument("folder", type=Path, help="must be empty or absent")
    exporting.set_defaults(run=_export)

    installing = commands.add_parser("install-native", help="lay the C library out: header, CMake package, pkg-config")
    installing.add_argument("prefix", type=Path, help="a folder, such as /usr/local")
    installing.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    installing.set_defaults(run=_install)


def _export(options: argparse.Namespace) -> None:
    from builder.native.export import export_native

    graph = export_native(options.archive, options.folder)
    if graph.head is None:
        print(f"note: no head, hidden states and pooled vectors only: {graph.reason}")
    print(options.folder)


def _install(options: argparse.Namespace) -> None:
    from builder.native.library import install

    for path in install(options.prefix, options.device):
        print(path)
