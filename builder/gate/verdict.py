"""What the parity gate says of an 8-bit archive, apart from the code that finds it out: inspect only reads it."""

from __future__ import annotations

from dataclasses import dataclass

TOKEN_COSINE = 0.99
POOLED_COSINE = 0.998
HEAD_ERROR = 2.0**-6
"""Four roundings to bf16, the type of fill-mask's head; other heads are fp32."""


@dataclass(frozen=True)
class CosineVerdict:
    """What the gate found of an 8-bit archive; ``builder.quantisation.int8.Cosines`` says what the cosines are.

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

    def line(self) -> str:
        """The verdict in one line."""
        word = "passed" if self.passed else "FAILED"
        return f"parity {word}: {self.figures()}"

    def figures(self) -> str:
        """The figures alone."""
        return (
            f"worst token cosine {self.token_cosine:.4f} (allowed {TOKEN_COSINE}) on {self.token_input}; worst pooled "
            f"cosine {self.pooled_cosine:.4f} (allowed {POOLED_COSINE}) on {self.pooled_input}; head's error "
            f"{self.head_error:.1e} (allowed {HEAD_ERROR:.1e})"
        )
