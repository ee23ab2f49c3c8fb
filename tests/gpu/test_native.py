"""The CUDA library behind the C interface: the same results as the operator's on the same GPU."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from builder.native.binding import Model
from builder.native.library import compile_native
from tests.native.conftest import ROWS, Export, export  # noqa: F401  (a fixture)

CASES = [
    ("bert", "fp32", "none"), ("bert", "bf16", "none"), ("bert", "fp16", "none"), ("roberta", "bf16", "none"),
    ("deberta-v2", "bf16", "none"), ("bert", "bf16", "int8"), ("bert", "bf16", "fp8"),
]  # fmt: skip


@pytest.fixture(scope="session")
def cpu_library() -> Path:
    """See tests/conftest.py; loaded already."""
    from builder.compile import compile_cpu

    return Path(os.environ.get("EFFT_CPU_LIBRARY") or compile_cpu())


@pytest.fixture(scope="module")
def cuda_native() -> Path:
    """The C library for this GPU; ``$EFFT_NATIVE_CUDA_LIBRARY`` may name one built elsewhere."""
    if named := os.environ.get("EFFT_NATIVE_CUDA_LIBRARY"):
        return Path(named)
    major, minor = torch.cuda.get_device_capability()
    return compile_native("cuda", targets=("90a" if (major, minor) == (9, 0) else f"{major}{minor}",))


@pytest.mark.parametrize(("family", "compute", "scheme"), CASES)
def test_logits_are_the_archives(
    export: Export,  # noqa: F811
    cuda_native: Path,
    family: str,
    compute: str,
    scheme: str,
) -> None:
    exported = export(family, compute=compute, scheme=scheme)
    (wanted,) = exported.answers(ROWS)
    with Model(cuda_native, exported.folder) as model:
        assert model.info.device == b"cuda"
        got = model.encode(ROWS, "logits")
        again = model.encode(ROWS, "logits")  # by a graph
    bound = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}[compute] * float(np.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)
    np.testing.assert_array_equal(got, again)


def test_sessions_on_threads(export: Export, cuda_native: Path) -> None:  # noqa: F811
    import threading

    folder = export(compute="bf16").folder
    made: list[np.ndarray] = []

    def work() -> None:
        with Model(cuda_native, folder) as model:
            made.append(np.stack([model.encode(ROWS, "first") for _ in range(50)]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(made) == 4
    for results in made:
        np.testing.assert_array_equal(results, np.broadcast_to(made[0][0], results.shape))
