"""Matrices that a setup config keeps in 16 bits, by name."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from builder.errors import BuildError
from builder.families import EncoderSpec
from builder.slots import matrices


def kept_by_hand(names: Collection[str], spec: EncoderSpec) -> tuple[str, ...]:
    """The slots that ``names`` mean: ``layer.3.output`` or ``3.output``, with ``*`` for any part, ``layer.*.output``.

    Raises BuildError for a name that no matrix has.
    """
    every = [slot.name for slot in matrices(spec)]
    found: set[str] = set()
    for name in names:
        pattern = name.removeprefix("layer.")
        fitting = [matrix for matrix in every if fnmatchcase(matrix, pattern)]
        if not fitting:
            parts = sorted({matrix.rpartition(".")[2] for matrix in every})
            raise BuildError(
                f"keep: no matrix is named {name!r}; there are layer.N.PART, N from 0 to {spec.layers - 1} and PART "
                f"one of {', '.join(parts)}"
            )
        found.update(fitting)
    return tuple(matrix for matrix in every if matrix in found)
