"""What an encoder computes, the Python twin of ``kernels/include/efft/spec.h``."""

from __future__ import annotations

import math
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
    head: int | None = None
    """Size of a head; None: hidden / heads."""
    kv_heads: int | None = None
    """Heads of keys and values; None: heads."""
    normalise: str = "layer"
    first_norm: bool = True
    embedding_norm: bool = True
    types: bool = True
    gated: bool = False
    rotary: str = "none"
    rotary_size: int | None = None
    """None: head."""
    window: int = 0
    local: str = ""
    scale: float | None = None
    """None: what heads of this size have, see spec.h."""
    relative: str = "none"
    buckets: int = 0
    distance: int = 0
    c2p: bool = False
    p2c: bool = False
    layer_of: tuple[int, ...] = ()
    dropout_token: int | None = None

    def __post_init__(self) -> None:
        usual = {
            "embedding": self.hidden, "head": self.hidden // self.heads if self.heads > 0 else None,
            "kv_heads": self.heads, "rotary_size": self.head_size, "scale": self._usual_scale(),
            "local": "0" * self.layers, "layer_of": tuple(range(self.layers)),
        }  # fmt: skip
        for name, value in usual.items():
            if getattr(self, name) == value and not (name == "head" and self.hidden % self.heads):
                object.__setattr__(self, name, next(f.default for f in fields(self) if f.name == name))

    @property
    def head_size(self) -> int:
        """Elements of a head."""
        return self.head or (self.hidden // self.heads if self.heads > 0 else 0)

    @property
    def context(self) -> int:
        """Width of attention's result."""
        return self.heads * self.head_size

    @property
    def span(self) -> int:
        """Half the rows of ``position_keys`` and ``position_queries``."""
        return self.buckets or self.distance

    def _usual_scale(self) -> float | None:
        kinds = self.c2p + self.p2c if self.relative == "disentangled" else 0
        return 1.0 / math.sqrt(self.head_size * (1 + kinds)) if self.head_size > 0 else None

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
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return ",".join(str(number) for number in value)
    if not isinstance(value, float):
        return str(value)
    return next(text for digits in range(1, 18) if float(text := f"{value:.{digits}g}") == value or digits == 17)
