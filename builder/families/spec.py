"""What an encoder computes, the Python twin of ``kernels/include/efft/spec.h``."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

_VERSION = "encoder/1"


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder's sizes and options; ``text()`` is what the operators take and archive.json holds.

    The fields, their order and their defaults are the text's; what their values mean stands in spec.h.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    embedding: int | None = None
    """Width of the embedding tables; None: hidden."""
    activation: str = "gelu"
    norm: str = "post"
    epsilon: float = 1e-12
    positions: str = "slot"
    offset: int = 0
    pad: int | None = None

    def __post_init__(self) -> None:
        if self.embedding == self.hidden:
            object.__setattr__(self, "embedding", None)

    @property
    def width(self) -> int:
        """Width of the embedding tables."""
        return self.embedding or self.hidden

    @property
    def first_position(self) -> int:
        """The row of the position table that a sequence's first token takes."""
        return self.offset if self.pad is None else self.pad + 1

    def text(self) -> str:
        """The canonical text: what is default is left out."""
        words = [_VERSION]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                words.append(f"{field.name}={_printed(value)}")
        return " ".join(words)


def _printed(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return next(text for digits in range(1, 18) if float(text := f"{value:.{digits}g}") == value or digits == 17)
