"""What the parity gate says of an archive, apart from the code that finds it out: inspect only reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

ALLOWED_RATIO = 2.0
TOKEN_COSINE = 0.99
POOLED_COSINE = 0.998
HEAD_ERROR = 2.0**-6
"""Four roundings to bf16, the type of fill-mask's head; other heads are fp32."""


@dataclass(frozen=True)
class Verdict:
    """Relative root-mean-square errors against float64, and the probe on which the archive did worst."""

    error: float
    plain_error: float
    ratio: float
    worst_probe: str
    worst_error: float
    probes: int
    passed: bool
    device: str = "cpu"
    requests: int = 0
    """Answered as transformers answers them, end to end."""
    on_gpu: dict[str, Any] | None = None
    """The same figures of the CUDA library, where the builder's machine has a GPU that it runs on."""

    def line(self) -> str:
        """The verdict in one line."""
        word = "passed" if self.passed else "FAILED"
        where = "" if self.device == "cpu" else f" on {self.device}"
        asked = f"; {self.requests} requests answered as transformers does" if self.requests else ""
        return (
            f"parity {word}{where}: error {self.error:.2e}, plain PyTorch at the same type {self.plain_error:.2e} "
            f"(ratio {self.ratio:.2f}, allowed {ALLOWED_RATIO:g}); worst on {self.worst_probe}: {self.worst_error:.2e}"
            f"{asked}"
        ) + ("" if self.on_gpu is None else f"; {Verdict(**self.on_gpu).line()}")

    def figures(self) -> str:
        """The figures alone."""
        return (
            f"error {self.error:.2e} against float64; plain PyTorch {self.plain_error:.2e}; "
            f"ratio {self.ratio:.2f} (worst on {self.worst_probe}: {self.worst_error:.2e})"
        )


@dataclass(frozen=True)
class CosineVerdict:
    """What the gate found of an archive judged by cosines, which ``builder.quantisation.eight_bits.Cosines`` describes.

    ``head_error`` is the relative root-mean-square distance of the archive's answers from those of the checkpoint's own
    head, in fp32, on the archive's hidden states.
    """

    token_cosine: float
    token_input: str
    pooled_cosine: float
    pooled_input: str
    head_error: float
    probes: int
    passed: bool
    requests: int = 0
    """Answered as transformers answers them, by the task code on the checkpoint's model."""
    device: str = "cpu"
    on_gpu: dict[str, Any] | None = None
    """The same figures of the CUDA library, where the builder's machine has a GPU that it runs on."""

    def line(self) -> str:
        """The verdict in one line."""
        word = "passed" if self.passed else "FAILED"
        where = "" if self.device == "cpu" else f" on {self.device}"
        line = f"parity {word}{where}: {self.figures()}"
        return line if self.on_gpu is None else f"{line}; {CosineVerdict(**self.on_gpu).line()}"

    def figures(self) -> str:
        """The figures alone."""
        return (
            f"worst token cosine {self.token_cosine:.4f} (allowed {TOKEN_COSINE}) on {self.token_input}; worst pooled "
            f"cosine {self.pooled_cosine:.4f} (allowed {POOLED_COSINE}) on {self.pooled_input}; head's error "
            f"{self.head_error:.1e} (allowed {HEAD_ERROR:.1e})"
        )


VERDICTS: dict[str, type[Verdict | CosineVerdict]] = {"error": Verdict, "cosine": CosineVerdict}
"""By the way a quantisation scheme is judged (``builder.quantisation.schemes``)."""


def recorded(judged_by: str, facts: Mapping[str, Any]) -> Verdict | CosineVerdict:
    """The verdict in an archive.json; what a later builder adds to it is left out."""
    kind = VERDICTS[judged_by]
    return kind(**{field.name: facts[field.name] for field in fields(kind) if field.name in facts})
