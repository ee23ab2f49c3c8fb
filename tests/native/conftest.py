"""Archives of tiny checkpoints, exported once for all tests, and the library laid out as programs look for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.archive import LibraryFile, write_files
from builder.checkpoint import load
from builder.native.export import export_native
from builder.native.library import compile_native, install
from handler.archive import ArchiveFacts
from handler.config import SetupConfig
from handler.runtime import load_model
from tests.checkpoints import make_checkpoint

ROWS = [[2, 9, 11, 3], [5], [2, 7, 8, 30, 41, 17, 22, 9, 3], [2, 3]]
"""Token ids; every vocabulary of tests/checkpoints.py has them."""


@dataclass(frozen=True)
class Exported:
    """An archive, what it holds, and the folder made of it."""

    archive: Path
    stage: Path
    folder: Path

    def answers(self, rows: list[list[int]], segments: list[list[int]] | None = None) -> tuple[np.ndarray, ...]:
        """The archive's own, as a worker computes them: padded, fp32."""
        facts = ArchiveFacts.load(self.stage / "archive.json")
        model = load_model(self.stage, facts, SetupConfig.load(self.stage / "setup_config.json"))
        shape = (len(rows), max(map(len, rows)))
        ids, types, mask = (np.zeros(shape, np.int64) for _ in range(3))
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
            if segments is not None:
                types[i, : len(row)] = segments[i]
        return model(ids, types, mask)


Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, cpu_library: Path) -> Export:
    """``export(family, task, **config)``: made at the first call with these arguments."""
    made: dict[str, Exported] = {}

    def get(family: str = "bert", task: str = "sequence_classification", **keys: Any) -> Exported:
        name = "_".join([family.replace("-", "_"), task, *map(str, keys.values())])
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp(name)
        checkpoint = make_checkpoint(folder / "checkpoint", family, task)
        config = SetupConfig.model_validate({"model_name": str(checkpoint), "name": name, "warm_up": False, **keys})
        stage = folder / "stage"
        stage.mkdir()
        write_files(stage, name, config, load(config), [LibraryFile(cpu_library, "cpu", [])], lambda _: None)
        archive = folder / f"{name}.mar"
        with zipfile.ZipFile(archive, "w") as packed:
            for path in sorted(stage.rglob("*")):
                packed.write(path, path.relative_to(stage))
        export_native(archive, folder / "native")
        made[name] = Exported(archive, stage, folder / "native")
        return made[name]

    return get


@pytest.fixture(scope="session")
def library() -> Path:
    """``libefft.so``; ``$EFFT_NATIVE_LIBRARY`` may name one built with a sanitizer (docs/native.md)."""
    return Path(os.environ.get("EFFT_NATIVE_LIBRARY") or compile_native())


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``builder install-native`` has put everything, moved afterwards: nothing may hold the first place."""
    folder = tmp_path_factory.mktemp("installed")
    install(folder / "first")
    (folder / "first").rename(folder / "moved")
    return folder / "moved"


@pytest.fixture(scope="session")
def examples(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the example programs, which CMake built against the package."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake here")
    from builder.compile import KERNELS

    build = tmp_path_factory.mktemp("examples")
    source = KERNELS / "c" / "examples"
    run("cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release")
    run("cmake", "--build", build)
    return build


def run(*command: object, **keys: Any) -> str:
    """A program's output; what it says where it fails is the assertion's text."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **keys)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
